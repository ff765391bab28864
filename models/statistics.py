"""What training events tell of each column: normalisation, knots, usual values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.nets.encoding import CLIP, ColumnStatistics
from stream.features.spec import Column

Values = NDArray[np.float16] | NDArray[np.float32]
F64 = NDArray[np.float64]

_TAILS = (0.001, 0.999)
_SHORTEST_PIECE = 1e-4
"""Of the spread: a shorter piece would turn a value's rounding into another input."""


def column_statistics(
    values: Values, columns: Sequence[Column], *, fraud: NDArray[np.bool_] | None = None, knots: int = 0
) -> ColumnStatistics:
    """Mean and spread of each column of (N, C), over what is present, the outermost thousandth on each side cut off.

    Where cutting leaves no spread (a flag that is rarely set) the plain spread counts. `knots`: so many pieces
    at most, between quantiles of the genuine events and of the frauds (`fraud` is (N,)), half and half: what
    tells frauds apart lies where they are, which quantiles of all events would miss.
    """
    mean, factor = np.zeros(len(columns), np.float32), np.zeros(len(columns), np.float32)
    low, high = np.zeros(len(columns), np.float32), np.zeros(len(columns), np.float32)
    edges = np.full((len(columns), knots + 1), np.inf, np.float32)
    fraud = np.zeros(len(values), np.bool_) if fraud is None else fraud
    for position, column in enumerate(columns):
        raw = values[:, position].astype(np.float64)
        finite = np.isfinite(raw)
        present = raw[finite]
        if column.cardinality or len(present) == 0:
            continue
        looked_at = np.log1p(np.maximum(present, 0.0)) if column.log else present
        cut = np.clip(looked_at, *np.quantile(looked_at, _TAILS))
        spread = float(cut.std()) or float(looked_at.std())
        mean[position], factor[position] = cut.mean(), 1.0 / spread if spread > 1e-6 else 0.0
        seen = (looked_at[[looked_at.argmin(), looked_at.argmax()]] - mean[position]) * factor[position]
        low[position], high[position] = np.clip(seen, -CLIP, CLIP)
        if knots and factor[position]:
            found = _knots(present, fraud[finite], knots)
            edges[position, : len(found)] = found
    missing = np.isnan(values).mean(axis=0).reshape(-1)
    return ColumnStatistics(
        log=np.array([column.log for column in columns]),
        mean=mean,
        factor=factor,
        missing=(missing > 0) & (missing < 1),
        cardinality=np.array([column.cardinality for column in columns], dtype=np.int64),
        knots=edges,
        low=low,
        high=high,
    )


def _knots(present: F64, fraud: NDArray[np.bool_], pieces: int) -> NDArray[np.float32]:
    """At most `pieces` + 1 ascending edges. Fewer where the values repeat."""
    kinds = [part for part in (present[~fraud], present[fraud]) if len(part) >= 2 * pieces]
    share = np.linspace(0.0, 1.0, pieces * 2 // max(1, len(kinds)) // 2 + 1)
    inner = np.concatenate([np.quantile(part, share[1:-1]) for part in kinds]) if kinds else present[:0]
    low, high = np.quantile(present, _TAILS)
    edges = np.unique(np.concatenate([[low], inner, [high]]).astype(np.float32))
    apart = np.diff(edges, prepend=-np.inf) > _SHORTEST_PIECE * max(float(high - low), 1e-6)
    edges = edges[apart]
    return edges if len(edges) > 1 else edges[:0]


def references(values: Values, columns: Sequence[Column]) -> dict[str, float | None]:
    """The usual value of each column of (N, C): median, commonest code of a category, None if mostly missing."""
    usual: dict[str, float | None] = {}
    for position, column in enumerate(columns):
        present = values[:, position].astype(np.float64)
        present = present[np.isfinite(present)]
        if len(present) * 2 < len(values) or len(present) == 0:
            usual[column.name] = None
        elif column.cardinality:
            usual[column.name] = float(np.bincount(present.astype(np.int64)).argmax())
        else:
            usual[column.name] = float(np.median(present))
    return usual
