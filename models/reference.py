"""Makes the bundle's reference of drift: how scores and the most important columns were spread on validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.importance import Importance
from stream.features.spec import Column
from stream.scoring.reference import Distribution, Reference

Array = NDArray[Any]

COLUMNS = 12
"""So many of the most important aggregate columns are watched."""

_BINS = 10
_CODES = 20
_SCORE_SHARES = (*(share / 10 for share in range(1, 10)), 0.95, 0.99, 0.999)
"""Deciles, and the upper end finer: that is where decisions are made."""


def reference(
    probability: Array, aggregates: Array, columns: Sequence[Column], time_ms: Array, importance: Importance
) -> Reference:
    """Of the validation events: probability (V,), aggregates (V, D), times (V,)."""
    place = {column.name: position for position, column in enumerate(columns)}
    watched = list(importance.columns)[:COLUMNS]
    return Reference(
        from_ms=int(time_ms.min()),
        to_ms=int(time_ms.max()) + 1,
        events=len(probability),
        score=number_distribution(probability.astype(np.float32), _SCORE_SHARES),
        columns={name: _column(aggregates[:, place[name]], columns[place[name]]) for name in watched},
    )


def _column(values: Array, column: Column) -> Distribution:
    if column.cardinality:
        return category_distribution(values)
    return number_distribution(values, tuple(share / _BINS for share in range(1, _BINS)))


def number_distribution(values: Array, shares: Sequence[float]) -> Distribution:
    """Bins with edges near these quantiles, half way between neighbouring values so that rounding moves nothing."""
    present = np.unique(values[np.isfinite(values)].astype(np.float64))
    edges: set[float] = set()
    if len(present) > 1:
        wanted = np.quantile(values[np.isfinite(values)].astype(np.float64), shares)
        above = np.clip(np.searchsorted(present, wanted, side="right"), 1, len(present) - 1)
        edges = set(((present[above - 1] + present[above]) / 2.0).tolist())
    return _measured("number", values, edges=tuple(sorted(edges)))


def category_distribution(values: Array) -> Distribution:
    """A bin for each of the commonest codes, and one for the rest."""
    codes, counts = np.unique(values[np.isfinite(values)].astype(np.int64), return_counts=True)
    common = codes[np.argsort(-counts, kind="stable")[:_CODES]]
    return _measured("category", values, codes=tuple(sorted(common.tolist())))


def _measured(kind: str, values: Array, **bins: Any) -> Distribution:
    inner = len(bins.get("edges", ())) + len(bins.get("codes", ()))
    empty = Distribution.model_validate({"kind": kind, **bins, "shares": (1.0, *[0.0] * inner)})
    shares = empty.counts(values) / len(values)
    return Distribution.model_validate(
        {"kind": kind, **bins, "shares": tuple(shares[:-1].tolist()), "missing": float(shares[-1])}
    )
