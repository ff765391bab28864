"""What an operator of the event itself sees: a whole batch, and its shared entities. Computed once, kept."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stream.features.batch import EventBatch
from stream.features.entities import KindValues

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class EventView:
    """B events. Everything is (B,) float64 unless said otherwise; NaN means missing."""

    def __init__(self, batch: EventBatch, entities: dict[str, KindValues]) -> None:
        self.batch, self._entities = batch, entities
        self.time_ms: I64 = batch.time_ms

    @cached_property
    def amount(self) -> F64:
        """In major units of the base currency; NaN without a rate."""
        return np.where(self.batch.amount_minor < 0, np.nan, self.batch.amount_minor / 100.0)

    @cached_property
    def log_amount(self) -> F64:
        """ln(1 + amount)."""
        return np.log1p(self.amount)

    @cached_property
    def hour(self) -> I64:
        """Hours since 1970: (B,) int64."""
        return self.time_ms // 3_600_000

    def category(self, field: str) -> NDArray[np.int16]:
        """Category code: (B,) int16; 0 is missing."""
        return self.batch.categories[field]

    def number(self, field: str) -> F64:
        """A field of the domain's `numbers`."""
        return self.batch.numbers[field]

    def entity(self, kind: str) -> KindValues:
        """What the entities of one kind know."""
        return self._entities[kind]
