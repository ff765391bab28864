"""The columns of a micro-batch: what decoding hands to the features."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
F32 = NDArray[np.float32]

NO_AMOUNT = -1
"""amount_minor of an event whose currency has no rate."""


@dataclass(slots=True)
class EventBatch:
    """B valid events, in offset order within each partition. Arrays are (B,), lists have length B."""

    events: list[dict[str, Any]]
    partition: NDArray[np.int32]
    offset: I64
    time_ms: I64
    amount_minor: I64
    """1/100 of the domain's base currency; NO_AMOUNT without a rate."""
    accounts: list[str]
    event_hash: NDArray[np.uint64]
    entities: dict[str, list[str | None]]
    categories: dict[str, NDArray[np.int16]]
    latitude: F64
    longitude: F64
    numbers: dict[str, F64] = field(default_factory=dict)
    """By field of the domain's `numbers`; NaN is missing."""

    def __len__(self) -> int:
        return len(self.accounts)

    def part(self, start: int, stop: int) -> EventBatch:
        """Events start to stop, as views where numpy allows."""
        return _part(self, start, stop)


@dataclass(slots=True)
class LabelBatch:
    """L labels, in offset order within each partition. `fraud` says the verdict; `event_hash` as in EventBatch."""

    partition: NDArray[np.int32]
    offset: I64
    time_ms: I64
    """The time of the labelled event."""
    known_ms: I64
    """When the verdict became known."""
    fraud: NDArray[np.bool_]
    amount_minor: I64
    accounts: list[str]
    event_hash: NDArray[np.uint64]
    entities: dict[str, list[str | None]]

    def __len__(self) -> int:
        return len(self.accounts)

    def part(self, start: int, stop: int) -> LabelBatch:
        """Labels start to stop, as views where numpy allows."""
        return _part(self, start, stop)


_Batch = TypeVar("_Batch", EventBatch, LabelBatch)


def _part(batch: _Batch, start: int, stop: int) -> _Batch:
    chosen = slice(start, stop)
    fields: dict[str, Any] = {}
    for column in dataclasses.fields(batch):
        value = getattr(batch, column.name)
        fields[column.name] = {k: v[chosen] for k, v in value.items()} if isinstance(value, dict) else value[chosen]
    return type(batch)(**fields)


@dataclass(slots=True)
class Assembled:
    """What the features made of a batch, aligned with it."""

    steps: F32
    """(B, T, F): the last T step vectors of the account, this event's own last; zeros after `lengths`."""
    lengths: I64
    """(B,): 1 to T. Rows are left-aligned: steps[b, :lengths[b]], oldest first."""
    aggregates: F32
    """(B, D); NaN means missing."""
    duplicate: NDArray[np.bool_]
    """(B,): a repeat of one of the account's last 64 event ids. Its vectors are not to be used."""
    late: NDArray[np.bool_]
    """(B,): older than the account's newest event."""
    saturated: NDArray[np.bool_]
    """(B,): more than 64 events in one of the windows: beyond 64, tiles."""
    shared: NDArray[np.bool_]
    """(B,): other partitions' entity values took part."""
    view_read_ms: I64
    """(B,): when the oldest of those values was read; meaningless where none took part."""
