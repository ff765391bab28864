"""Operators of the event itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stream.features.event_view import EventView
from stream.features.norm import is_weekend
from stream.features.operators.base import F64, Magnitude, Plain
from stream.features.spec import Column

NIGHT_HOURS = 6


@dataclass(frozen=True, slots=True)
class Amount(Magnitude):
    """The event's amount in the base currency; NaN without a rate."""

    of_event: ClassVar[bool] = True

    def compute(self, view: EventView) -> list[F64]:
        return [view.log_amount] if self.log else [view.amount]


@dataclass(frozen=True, slots=True)
class NumberOf(Magnitude):
    """A number that the event carries, one of the domain's `numbers`; NaN where it is missing. `log` cuts at 0."""

    field: str = "attributes.value"
    of_event: ClassVar[bool] = True

    @property
    def spans_decades(self) -> bool:
        return False

    def compute(self, view: EventView) -> list[F64]:
        number = view.number(self.field)
        return self.scaled(np.maximum(number, 0.0) if self.log else number)


@dataclass(frozen=True, slots=True)
class Calendar:
    """Hour of day and day of week (UTC) on their circles, each as sine and cosine."""

    name: str = "calendar"
    group: str = "time"
    of_event: ClassVar[bool] = True

    @property
    def columns(self) -> tuple[Column, ...]:
        return tuple(Column(name, self.group) for name in ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos"))

    @property
    def same_fields(self) -> tuple[str, ...]:
        return ()

    def compute(self, view: EventView) -> list[F64]:
        minute = (view.time_ms // 60_000) % 1440
        hour_of_week = (view.hour + 72) % 168  # 1 January 1970 was a Thursday
        return [_DAY_SIN[minute], _DAY_COS[minute], _WEEK_SIN[hour_of_week], _WEEK_COS[hour_of_week]]


@dataclass(frozen=True, slots=True)
class Night(Plain):
    """1 from midnight to 6 h (UTC), else 0."""

    of_event: ClassVar[bool] = True

    def compute(self, view: EventView) -> list[F64]:
        return [(view.hour % 24 < NIGHT_HOURS).astype(np.float64)]


@dataclass(frozen=True, slots=True)
class Weekend(Plain):
    """1 on Saturday and Sunday (UTC), else 0."""

    of_event: ClassVar[bool] = True

    def compute(self, view: EventView) -> list[F64]:
        return [np.asarray(is_weekend(view.hour), dtype=np.float64)]


@dataclass(frozen=True, slots=True)
class Code:
    """A category of the event as its code; 0 is missing. `buckets` as in the domain's Category."""

    name: str
    group: str
    field: str
    buckets: int
    of_event: ClassVar[bool] = True

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column(self.name, self.group, self.buckets + 1),)

    @property
    def same_fields(self) -> tuple[str, ...]:
        return ()

    def compute(self, view: EventView) -> list[F64]:
        return [view.category(self.field).astype(np.float64)]


def _circle(steps: int) -> tuple[F64, F64]:
    angle = 2 * np.pi * np.arange(steps) / steps
    return np.sin(angle), np.cos(angle)


_DAY_SIN, _DAY_COS = _circle(1440)
_WEEK_SIN, _WEEK_COS = _circle(168)
