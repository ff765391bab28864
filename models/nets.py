"""The networks. One today: RiskNet, an LSTM over the step vectors joined with an MLP over the aggregates.

Everything between the raw feature values and the calibrated probability is inside the module, so what is
exported is the whole function. Written for torch.jit.script and torch.export alike; the former cannot read
postponed annotations, so this file must not `from __future__ import annotations`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

CLIP: Final = 8.0
"""Normalised values stay within this many standard deviations: one absurd amount must not saturate the net."""

OUTPUTS: Final = ("log_odds", "probability", "sequence", "aggregate")
"""What forward gives. `sequence` and `aggregate` are the probabilities of each branch alone."""

HEADS: Final = ("probability", "sequence", "aggregate")
"""The columns of `RiskNet.raw`, and the order of the calibration's coefficients."""


@dataclass(frozen=True, slots=True)
class ColumnStatistics:
    """What normalisation needs of C columns, learnt from training events. Arrays are (C,)."""

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


@dataclass(frozen=True, slots=True)
class NetOptions:
    """Sizes of RiskNet."""

    hidden: int = 64
    embedding: int = 8
    width: int = 128
    dropout: float = 0.1


def _tensor(values: NDArray[Any]) -> Tensor:
    """A tensor with memory of its own: torch.export cannot save an empty one that numpy owns."""
    return torch.from_numpy(values).clone()


class ColumnEncoder(nn.Module):
    """(..., C) raw values, NaN where missing, to (..., `width`): normalised numbers, indicators, embeddings."""

    clip: Final[float]
    logs: Final[int]
    categories: Final[int]
    indicators: Final[int]
    log: Tensor
    mean: Tensor
    factor: Tensor
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
        self.clip = CLIP
        self.logs = int(statistics.log.sum())
        self.categories = len(category_index)
        self.indicators = len(missing_index)
        self.width = len(numeric) + self.indicators + self.categories * embedding
        # Category columns stay in place with factor 0: cheaper than gathering the numeric ones out.
        self.register_buffer("log", torch.from_numpy(statistics.log))
        self.register_buffer("mean", torch.from_numpy(statistics.mean.astype(np.float32)))
        self.register_buffer("factor", torch.from_numpy(np.where(numeric, statistics.factor, 0.0).astype(np.float32)))
        self.register_buffer("category_index", _tensor(category_index))
        self.register_buffer("missing_index", _tensor(missing_index))
        self.register_buffer("highest_code", _tensor((cardinality - 1).astype(np.float32)))
        self.register_buffer("first_row", _tensor(np.cumsum(cardinality) - cardinality))
        # One table for all columns, each with its own range of rows: one look-up for all.
        self.table = nn.Embedding(max(1, int(cardinality.sum())), embedding)
        # From zero, so that a code that training never met says nothing.
        nn.init.zeros_(self.table.weight)

    def forward(self, values: Tensor) -> Tensor:
        seen = values
        if self.logs > 0:
            seen = torch.where(self.log, torch.log1p(torch.clamp(values, min=0.0)), values)
        known = torch.nan_to_num((seen - self.mean) * self.factor, nan=0.0)
        parts = [torch.clamp(known, -self.clip, self.clip)]
        if self.indicators > 0:
            parts.append(torch.isnan(values.index_select(-1, self.missing_index)).to(values.dtype))
        if self.categories > 0:
            codes = torch.nan_to_num(values.index_select(-1, self.category_index), nan=0.0)
            # Bounded as floats: a huge one would turn negative as an integer.
            codes = torch.minimum(codes.clamp(min=0.0), self.highest_code)
            parts.append(self.table(codes.to(torch.int64) + self.first_row).flatten(-2))
        return torch.cat(parts, dim=-1)


class RiskNet(nn.Module):
    """steps (B,T,F), lengths (B,) from 1 to T, aggregates (B,D), all raw, to the OUTPUTS, each (B,)."""

    name: Final = "lstm-mlp"
    slope: Tensor
    intercept: Tensor

    def __init__(self, steps: ColumnStatistics, aggregates: ColumnStatistics, options: NetOptions) -> None:
        super().__init__()
        hidden, width = options.hidden, options.width
        self.step_encoder = ColumnEncoder(steps, options.embedding)
        self.aggregate_encoder = ColumnEncoder(aggregates, options.embedding)
        self.sequence = nn.LSTM(self.step_encoder.width, hidden, batch_first=True)
        self.aggregate = nn.Sequential(
            nn.Linear(self.aggregate_encoder.width, width),
            nn.ReLU(),
            nn.Dropout(options.dropout),
            nn.Linear(width, hidden),
            nn.ReLU(),
        )
        self.joined = nn.Sequential(
            nn.Dropout(options.dropout), nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )
        self.sequence_head = nn.Linear(hidden, 1)
        self.aggregate_head = nn.Linear(hidden, 1)
        self.register_buffer("slope", torch.ones(len(HEADS)))
        self.register_buffer("intercept", torch.zeros(len(HEADS)))

    def raw(self, steps: Tensor, lengths: Tensor, aggregates: Tensor) -> Tensor:
        """(B, 3) log-odds of the HEADS before calibration: what training optimises."""
        states, _ = self.sequence(self.step_encoder(steps))
        # The LSTM reads forward only, so what pads a short sequence cannot reach its last valid state.
        last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, states.size(2))
        sequence = states.gather(1, last).squeeze(1)
        aggregate = self.aggregate(self.aggregate_encoder(aggregates))
        heads = [
            self.joined(torch.cat([sequence, aggregate], dim=1)),
            self.sequence_head(sequence),
            self.aggregate_head(aggregate),
        ]
        return torch.cat(heads, dim=1)

    def forward(self, steps: Tensor, lengths: Tensor, aggregates: Tensor) -> dict[str, Tensor]:
        log_odds = self.raw(steps, lengths, aggregates) * self.slope + self.intercept
        probabilities = torch.sigmoid(log_odds)
        return {
            "log_odds": log_odds[:, 0],
            "probability": probabilities[:, 0],
            "sequence": probabilities[:, 1],
            "aggregate": probabilities[:, 2],
        }

    def calibrate(self, coefficients: Mapping[str, tuple[float, float]]) -> None:
        """Sets (slope, intercept) of each head by name."""
        self.slope.copy_(torch.tensor([coefficients[head][0] for head in HEADS]))
        self.intercept.copy_(torch.tensor([coefficients[head][1] for head in HEADS]))
