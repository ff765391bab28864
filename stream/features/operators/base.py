"""What all operators have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from stream.features.event_view import EventView
from stream.features.rows import NEVER
from stream.features.spec import Column
from stream.features.view import View

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
DAY_MS = 86_400_000
LONGEST_MEMORY_MS = 30 * DAY_MS
"""What became known longer ago is forgotten by event time, before the store may free the row."""


class Operator(Protocol):
    """A declared feature that can compute itself. `same_fields` are the codes that the ring must keep.

    One with `of_event` sees an EventView and is computed once per batch; the others see a View of accounts.
    """

    @property
    def columns(self) -> tuple[Column, ...]: ...
    @property
    def same_fields(self) -> tuple[str, ...]: ...


class EventOperator(Operator, Protocol):
    """Needs nothing of the account."""

    def compute(self, view: EventView) -> Sequence[NDArray[np.generic]]: ...


class AccountOperator(Operator, Protocol):
    """Needs the account's row."""

    def compute(self, view: View) -> Sequence[NDArray[np.generic]]: ...


@dataclass(frozen=True, slots=True)
class Plain:
    """Base: one number column named `name`, no codes in the ring."""

    name: str
    group: str
    log: bool = False

    of_event: ClassVar[bool] = False
    keeps: ClassVar[tuple[str, ...]] = ()
    """Which of entity_rows.OPTIONAL the rows of the operator's entity must hold."""

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column(self.name, self.group, log=not self.log and self.spans_decades),)

    @property
    def spans_decades(self) -> bool:
        return False

    @property
    def same_fields(self) -> tuple[str, ...]:
        return ()

    def scaled(self, value: F64) -> list[F64]:
        return [np.log1p(value) if self.log else value]


@dataclass(frozen=True, slots=True)
class Magnitude(Plain):
    """Base of counts, sums, seconds: not negative, over decades."""

    @property
    def spans_decades(self) -> bool:
        return True


def days_since(moment_ms: I64, time_ms: I64) -> F64:
    """Days from a moment, (n,); NaN where it is NEVER or forgotten."""
    known = moment_ms > np.maximum(time_ms - LONGEST_MEMORY_MS, NEVER)
    elapsed = np.where(known, np.maximum(time_ms - moment_ms, 0), 0) / DAY_MS
    return np.where(known, elapsed, np.nan)
