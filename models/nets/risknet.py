"""RiskNet: a sequence branch, an aggregate branch, or both joined. ARCHITECTURES is the registry of what there is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from models.nets.encoding import ColumnEncoder, ColumnStatistics, KnotEncoder
from models.nets.sequences import Attention, Convolution, Recurrent, last_valid
from stream.errors import ConfigError


@dataclass(frozen=True, slots=True)
class NetOptions:
    """Architecture and sizes of a RiskNet."""

    architecture: str = "lstm-mlp"
    hidden: int = 64
    """Of the sequence branch, and of what joins the branches."""
    embedding: int = 8
    width: int = 128
    """Of the first layer of the aggregate branch."""
    dropout: float = 0.1
    sequence_dropout: float = 0.5
    """How often, in training, what joins the branches must do without the sequence: it would rather learn
    the training accounts' own sequences by heart than what the aggregates say of all accounts."""
    knots: int = 12
    """Pieces that each number of the aggregate branch is cut into; 0: none."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What an architecture is made of."""

    sequence: str | None
    """lstm, gru, rnn, cnn, attention; None: the sequence is not read."""
    aggregates: bool
    """The MLP over the aggregates and the current step."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "lstm-mlp": Architecture("lstm", True),
    "gru-mlp": Architecture("gru", True),
    "rnn-mlp": Architecture("rnn", True),
    "cnn-mlp": Architecture("cnn", True),
    "attention-mlp": Architecture("attention", True),
    "mlp": Architecture(None, True),
    "lstm": Architecture("lstm", False),
    "gru": Architecture("gru", False),
    "rnn": Architecture("rnn", False),
    "cnn": Architecture("cnn", False),
    "attention": Architecture("attention", False),
}


def architecture(name: str) -> Architecture:
    """The registry's entry; ConfigError when there is none of that name."""
    if name not in ARCHITECTURES:
        raise ConfigError(f"architecture {name!r}: choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def _sequence_branch(kind: str, inputs: int, hidden: int, length: int) -> nn.Module:
    if kind == "cnn":
        return Convolution(inputs, hidden)
    if kind == "attention":
        return Attention(inputs, hidden, length)
    return Recurrent(kind, inputs, hidden)


class AggregateBranch(nn.Module):
    """aggregates (B, D) and the current step (B, F), both raw, to (B, `width`)."""

    knots: Final[bool]

    def __init__(self, steps: ColumnStatistics, aggregates: ColumnStatistics, options: NetOptions) -> None:
        super().__init__()
        self.columns = ColumnEncoder(aggregates, options.embedding)
        self.current = ColumnEncoder(steps, options.embedding)
        self.column_knots = KnotEncoder(aggregates)
        self.current_knots = KnotEncoder(steps)
        self.knots = self.column_knots.width + self.current_knots.width > 0
        inputs = self.columns.width + self.current.width + self.column_knots.width + self.current_knots.width
        self.width = options.hidden
        self.layers = nn.Sequential(
            nn.Linear(inputs, options.width),
            nn.ReLU(),
            nn.Dropout(options.dropout),
            nn.Linear(options.width, options.hidden),
            nn.ReLU(),
        )

    def forward(self, current: Tensor, aggregates: Tensor) -> Tensor:
        parts = [self.columns(aggregates), self.current(current)]
        if self.knots:
            parts += [self.column_knots(aggregates), self.current_knots(current)]
        found: Tensor = self.layers(torch.cat(parts, dim=1))
        return found


class RiskNet(nn.Module):
    """steps (B,T,F), lengths (B,) from 1 to T, aggregates (B,D), all raw, to log-odds (B, heads), not calibrated.

    The first head is the answer. With two branches, each has a head of its own beside it.
    """

    reads_sequence: Final[bool]
    reads_aggregates: Final[bool]
    joins: Final[bool]
    sequence_dropout: Final[float]

    def __init__(
        self, steps: ColumnStatistics, aggregates: ColumnStatistics, options: NetOptions, sequence_length: int
    ) -> None:
        super().__init__()
        built = architecture(options.architecture)
        self.statistics, self.options = (steps, aggregates), options
        hidden = options.hidden
        self.sequence_dropout = options.sequence_dropout
        self.reads_sequence, self.reads_aggregates = built.sequence is not None, built.aggregates
        self.joins = self.reads_sequence and self.reads_aggregates
        self.representation = 0
        if built.sequence is not None:
            self.step_encoder = ColumnEncoder(steps, options.embedding)
            self.sequence = _sequence_branch(built.sequence, self.step_encoder.width, hidden, sequence_length)
            self.sequence_head = nn.Linear(hidden, 1)
            self.representation += hidden
        if built.aggregates:
            self.aggregate = AggregateBranch(steps, aggregates, options)
            self.aggregate_head = nn.Linear(hidden, 1)
            self.representation += hidden
        if self.joins:
            self.joined = nn.Sequential(
                nn.Dropout(options.dropout), nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
            )
        self.heads = ("probability", "sequence", "aggregate") if self.joins else ("probability",)

    def branches(self, steps: Tensor, lengths: Tensor, aggregates: Tensor) -> list[Tensor]:
        """What each branch makes of the events, (B, hidden) each: the sequence's first."""
        found: list[Tensor] = []
        if self.reads_sequence:
            found.append(self.sequence(self.step_encoder(steps), lengths))
        if self.reads_aggregates:
            found.append(self.aggregate(last_valid(steps, lengths), aggregates))
        return found

    def forward(self, steps: Tensor, lengths: Tensor, aggregates: Tensor) -> Tensor:
        found = self.branches(steps, lengths, aggregates)
        if self.joins:
            sequence = found[0]
            if self.training:
                kept = torch.rand([sequence.size(0), 1], device=sequence.device) >= self.sequence_dropout
                sequence = sequence * kept.to(sequence.dtype)
            heads = [
                self.joined(torch.cat([sequence, found[1]], dim=1)),
                self.sequence_head(found[0]),
                self.aggregate_head(found[1]),
            ]
            return torch.cat(heads, dim=1)
        head: Tensor = self.sequence_head(found[0]) if self.reads_sequence else self.aggregate_head(found[0])
        return head
