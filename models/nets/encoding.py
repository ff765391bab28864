"""From raw columns to what a net reads: normalised numbers, knots, indicators of the missing, embedded categories.

All of it is inside the exported module. This file is read by torch.jit.script, which knows no postponed
annotations: it must not `from __future__ import annotations`. The same holds for the whole package.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

CLIP: Final = 8.0
"""Normalised values stay within this many standard deviations: one absurd amount must not saturate the net."""


@dataclass(frozen=True, slots=True)
class ColumnStatistics:
    """What normalisation needs of C columns, learnt from training events. Arrays are (C,) but for `knots`."""

    log: NDArray[np.bool_]
    """The net looks at ln(1 + x)."""
    mean: NDArray[np.float32]
    """Of what the net looks at, as is `factor`."""
    factor: NDArray[np.float32]
    """One over the spread. 0 for a category, and for a column that training never saw vary: weights that no
    data taught must not speak on the day it does."""
    missing: NDArray[np.bool_]
    """The column was missing in some training events and present in others: it gets an indicator."""
    cardinality: NDArray[np.int64]
    """0 for a number; above 0 a category code below it."""
    knots: NDArray[np.float32]
    """(C, K + 1): ascending edges of K pieces, in raw units; infinity fills up a row that has fewer. K may be 0."""
    low: NDArray[np.float32]
    """The least normalised value that training saw, and at least -CLIP: what lies below reads as this."""
    high: NDArray[np.float32]
    """The greatest, likewise. An account's age or its count of events grows past all that training saw, and
    weights that no data taught out there must not speak."""


def tensor_of(values: NDArray[Any]) -> Tensor:
    """A tensor with memory of its own: torch.export cannot save an empty one that numpy owns."""
    return torch.from_numpy(values).clone()


class ColumnEncoder(nn.Module):
    """(..., C) raw values, NaN where missing, to (..., `width`)."""

    logs: Final[int]
    categories: Final[int]
    indicators: Final[int]
    log: Tensor
    mean: Tensor
    factor: Tensor
    low: Tensor
    high: Tensor
    category_index: Tensor
    missing_index: Tensor
    highest_code: Tensor
    first_row: Tensor

    def __init__(self, statistics: ColumnStatistics, embedding: int) -> None:
        super().__init__()
        numeric = statistics.cardinality == 0
        category_index = np.flatnonzero(~numeric)
        missing_index = np.flatnonzero(statistics.missing & numeric)
        cardinality = statistics.cardinality[category_index]
        self.logs = int(statistics.log.sum())
        self.categories = len(category_index)
        self.indicators = len(missing_index)
        self.width = len(numeric) + self.indicators + self.categories * embedding
        # Category columns stay in place with factor 0: cheaper than gathering the numeric ones out.
        self.register_buffer("log", torch.from_numpy(statistics.log))
        self.register_buffer("mean", torch.from_numpy(statistics.mean.astype(np.float32)))
        self.register_buffer("factor", torch.from_numpy(np.where(numeric, statistics.factor, 0.0).astype(np.float32)))
        self.register_buffer("low", torch.from_numpy(np.where(numeric, statistics.low, 0.0).astype(np.float32)))
        self.register_buffer("high", torch.from_numpy(np.where(numeric, statistics.high, 0.0).astype(np.float32)))
        self.register_buffer("category_index", tensor_of(category_index))
        self.register_buffer("missing_index", tensor_of(missing_index))
        self.register_buffer("highest_code", tensor_of((cardinality - 1).astype(np.float32)))
        self.register_buffer("first_row", tensor_of(np.cumsum(cardinality) - cardinality))
        # One table for all columns, each with its own range of rows: one look-up for all.
        self.table = nn.Embedding(max(1, int(cardinality.sum())), embedding)
        # From zero, so that a code that training never met says nothing.
        nn.init.zeros_(self.table.weight)

    def normalised(self, values: Tensor) -> Tensor:
        """(..., C): standardised, within what training saw; 0 where missing and for a category."""
        seen = values
        if self.logs > 0:
            seen = torch.where(self.log, torch.log1p(torch.clamp(values, min=0.0)), values)
        known = torch.nan_to_num((seen - self.mean) * self.factor, nan=0.0)
        return torch.minimum(torch.maximum(known, self.low), self.high)

    def forward(self, values: Tensor) -> Tensor:
        parts = [self.normalised(values)]
        if self.indicators > 0:
            parts.append(torch.isnan(values.index_select(-1, self.missing_index)).to(values.dtype))
        if self.categories > 0:
            codes = torch.nan_to_num(values.index_select(-1, self.category_index), nan=0.0)
            # Bounded as floats: a huge one would turn negative as an integer.
            codes = torch.minimum(codes.clamp(min=0.0), self.highest_code)
            parts.append(self.table(codes.to(torch.int64) + self.first_row).flatten(-2))
        return torch.cat(parts, dim=-1)


class KnotEncoder(nn.Module):
    """(B, C) raw values to (B, `width`): how far each value has come through each piece between its knots, 0 to 1.

    Piecewise linear encoding of Gorishniy et al., "On Embeddings for Numerical Features in Tabular Deep
    Learning", NeurIPS 2022. Missing: 0 in every piece.
    """

    index: Tensor
    start: Tensor
    factor: Tensor

    def __init__(self, statistics: ColumnStatistics) -> None:
        super().__init__()
        # One entry per real piece, so that nothing is computed for the padding.
        real = np.isfinite(statistics.knots[:, 1:])
        column, piece = np.nonzero(real)
        start = statistics.knots[column, piece]
        self.width = len(column)
        self.register_buffer("index", tensor_of(column.astype(np.int64)))
        self.register_buffer("start", tensor_of(start.astype(np.float32)))
        length = statistics.knots[column, piece + 1].astype(np.float64) - start
        self.register_buffer("factor", tensor_of((1.0 / length).astype(np.float32)))

    def forward(self, values: Tensor) -> Tensor:
        through = (values.index_select(1, self.index) - self.start) * self.factor
        return torch.nan_to_num(torch.clamp(through, 0.0, 1.0), nan=0.0)
