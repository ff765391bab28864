"""The operators that a domain declares its features with.

Each is a frozen dataclass of plain values: its `columns` name what it makes, `compute(view)` makes it,
(n, columns) worth of arrays in the order of the columns. Magnitudes that span decades (counts, money,
seconds) are given as ln(1 + x) when `log` is set, which is what step vectors need (float16) and nets like.
The slow twin of each stands in tests/parity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stream.features.rows import NEVER
from stream.features.spec import Column, window_ms
from stream.features.view import View

F64 = NDArray[np.float64]
_DAY_MS = 86_400_000
LONGEST_MEMORY_MS = 30 * _DAY_MS
"""What became known longer ago is forgotten by event time, before the store may free the row."""
_HOUR_MS = 3_600_000


class Operator(Protocol):
    """A declared feature that can compute itself. `same_fields` are the codes that the ring must keep."""

    @property
    def columns(self) -> tuple[Column, ...]: ...
    @property
    def same_fields(self) -> tuple[str, ...]: ...
    def compute(self, view: View) -> Sequence[F64]: ...


@dataclass(frozen=True, slots=True)
class _Plain:
    """Base: one number column named `name`, no codes in the ring."""

    name: str
    group: str
    log: bool = False

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
class _Magnitude(_Plain):
    """Base of counts, sums, seconds: not negative, over decades."""

    @property
    def spans_decades(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Amount(_Magnitude):
    """The event's amount in the base currency; NaN without a rate."""

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.amount)


@dataclass(frozen=True, slots=True)
class Count(_Magnitude):
    """Events of the account in the window, this one included."""

    window: str = "24h"

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.count(self.window))


@dataclass(frozen=True, slots=True)
class Sum(_Magnitude):
    """Money of the account in the window, this event included."""

    window: str = "24h"

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.sum(self.window))


@dataclass(frozen=True, slots=True)
class Distinct(_Magnitude):
    """Different values of a field in the account's window, this event's included."""

    field: str = "merchant"
    window: str = "24h"

    @property
    def same_fields(self) -> tuple[str, ...]:
        return (self.field,)

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.distinct(self.field, self.window))


@dataclass(frozen=True, slots=True)
class Gap(_Magnitude):
    """Seconds since the account's last event; NaN for its first."""

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.gap)


@dataclass(frozen=True, slots=True)
class GapSame(_Magnitude):
    """Seconds since the account's last event with the same value of a field; NaN if none is remembered."""

    field: str = "merchant"

    @property
    def same_fields(self) -> tuple[str, ...]:
        return (self.field,)

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.since_same(self.field))


@dataclass(frozen=True, slots=True)
class UsualRate(_Magnitude):
    """Events per day before this one, over the window or, if shorter, the account's age (one day at least)."""

    window: str = "30d"

    def compute(self, view: View) -> list[F64]:
        first = view.row("first")
        age = np.where(first > NEVER, view.time_ms - first, 0) / _DAY_MS
        days = np.clip(age, 1.0, _window_days(self.window))
        return self.scaled((view.count(self.window) - 1.0) / days)


@dataclass(frozen=True, slots=True)
class AccountAge(_Magnitude):
    """Days since the account was first seen (or began anew)."""

    def compute(self, view: View) -> list[F64]:
        first = view.row("first")
        return self.scaled(np.where(first > NEVER, np.maximum(view.time_ms - first, 0), 0) / _DAY_MS)


@dataclass(frozen=True, slots=True)
class PastEvents(_Magnitude):
    """Events of the account so far."""

    def compute(self, view: View) -> list[F64]:
        return self.scaled((view.row("folded") - view.row("since")).astype(np.float64))


@dataclass(frozen=True, slots=True)
class NormMean(_Magnitude):
    """The account's usual amount: exp(mean of ln(1 + amount)) - 1, confirmed fraud excluded."""

    def compute(self, view: View) -> list[F64]:
        return self.scaled(np.expm1(view.norm_mean))


@dataclass(frozen=True, slots=True)
class NormRatio(_Plain):
    """ln of the amount over the account's usual amount."""

    def compute(self, view: View) -> list[F64]:
        return [view.log_amount - view.norm_mean]


@dataclass(frozen=True, slots=True)
class NormTimes(_Magnitude):
    """The amount over the account's usual amount, as a plain ratio for words."""

    def compute(self, view: View) -> list[F64]:
        return self.scaled(np.exp(np.clip(view.log_amount - view.norm_mean, -20, 20)))


@dataclass(frozen=True, slots=True)
class NormZ(_Plain):
    """(ln(1 + amount) - mean) / spread of the account's own past, within -10 to 10."""

    def compute(self, view: View) -> list[F64]:
        return [np.clip((view.log_amount - view.norm_mean) / view.norm_spread, -10.0, 10.0)]


@dataclass(frozen=True, slots=True)
class HourShare(_Plain):
    """Share of the account's past events in this hour of day (UTC) and the two beside it, confirmed fraud
    excluded; NaN without a past.
    """

    def compute(self, view: View) -> list[F64]:
        hours = view.row("hours")
        hour = (view.time_ms // _HOUR_MS) % 24
        near = sum(np.take_along_axis(hours, ((hour + step) % 24)[:, None], axis=1)[:, 0] for step in (-1, 0, 1))
        total = hours.sum(axis=1)
        return [np.where(total > 0, near / np.maximum(total, 1), np.nan)]


@dataclass(frozen=True, slots=True)
class Distance(_Magnitude):
    """Kilometres from the account's last known place; NaN where either is unknown."""

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.distance_km)


@dataclass(frozen=True, slots=True)
class Speed(_Magnitude):
    """km/h needed to come from the last known place; NaN where unknown."""

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.speed_kmh)


@dataclass(frozen=True, slots=True)
class Frauds(_Magnitude):
    """Confirmed frauds of the account that were known at this event's place in the log."""

    def compute(self, view: View) -> list[F64]:
        return self.scaled(np.maximum(view.row("frauds"), 0).astype(np.float64))


@dataclass(frozen=True, slots=True)
class SinceFraud(_Magnitude):
    """Days since a fraud of the account last became known; NaN if none did in 30 days."""

    def compute(self, view: View) -> list[F64]:
        return self.scaled(_days_since(view.row("last_fraud"), view.time_ms))


@dataclass(frozen=True, slots=True)
class Calendar:
    """Hour of day and day of week (UTC) on their circles, each as sine and cosine."""

    name: str = "calendar"
    group: str = "time"

    @property
    def columns(self) -> tuple[Column, ...]:
        return tuple(Column(name, self.group) for name in ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos"))

    @property
    def same_fields(self) -> tuple[str, ...]:
        return ()

    def compute(self, view: View) -> list[F64]:
        minute = (view.time_ms // 60_000) % 1440
        hour_of_week = (view.time_ms // _HOUR_MS + 72) % 168  # 1 January 1970 was a Thursday
        return [_DAY_SIN[minute], _DAY_COS[minute], _WEEK_SIN[hour_of_week], _WEEK_COS[hour_of_week]]


@dataclass(frozen=True, slots=True)
class Code:
    """A category of the event as its code; 0 is missing. `buckets` as in the domain's Category."""

    name: str
    group: str
    field: str
    buckets: int

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column(self.name, self.group, self.buckets + 1),)

    @property
    def same_fields(self) -> tuple[str, ...]:
        return ()

    def compute(self, view: View) -> list[F64]:
        return [view.category(self.field)]


@dataclass(frozen=True, slots=True)
class EntityCount(_Magnitude):
    """Events of the entity in the window before this one, all accounts; NaN where the event has no such entity."""

    entity: str = "merchant"
    window: str = "24h"

    def compute(self, view: View) -> list[F64]:
        values, w = view.entity(self.entity), view.entity_window(self.entity, self.window)
        return self.scaled(np.where(values.present, values.count[:, w], np.nan))


@dataclass(frozen=True, slots=True)
class EntityMeanTimes(_Plain):
    """ln of the amount over the entity's mean amount in the window; NaN without earlier events."""

    entity: str = "merchant"
    window: str = "7d"

    def compute(self, view: View) -> list[F64]:
        values, w = view.entity(self.entity), view.entity_window(self.entity, self.window)
        count = values.count[:, w]
        mean = values.sum_minor[:, w] / 100.0 / np.maximum(count, 1)
        return [np.where(count > 0, view.log_amount - np.log1p(mean), np.nan)]


@dataclass(frozen=True, slots=True)
class EntityFrauds(_Magnitude):
    """Frauds at the entity that became known in the window; NaN where the event has no such entity."""

    entity: str = "merchant"
    window: str = "30d"

    def compute(self, view: View) -> list[F64]:
        values, w = view.entity(self.entity), view.entity_window(self.entity, self.window)
        return self.scaled(np.where(values.present, np.maximum(values.fraud[:, w], 0), np.nan))


@dataclass(frozen=True, slots=True)
class EntityFraudShare(_Plain):
    """Frauds that became known in the window, per event in it: (frauds + 0.01) / (events + 1)."""

    entity: str = "merchant"
    window: str = "30d"

    def compute(self, view: View) -> list[F64]:
        values, w = view.entity(self.entity), view.entity_window(self.entity, self.window)
        share = (np.maximum(values.fraud[:, w], 0) + 0.01) / (values.count[:, w] + 1.0)
        return [np.where(values.present, share, np.nan)]


@dataclass(frozen=True, slots=True)
class EntitySinceFraud(_Magnitude):
    """Days since a fraud at the entity last became known; NaN if none did in 30 days."""

    entity: str = "merchant"

    def compute(self, view: View) -> list[F64]:
        return self.scaled(_days_since(view.entity(self.entity).last_fraud, view.time_ms))


def _days_since(moment_ms: NDArray[np.int64], time_ms: NDArray[np.int64]) -> F64:
    known = moment_ms > np.maximum(time_ms - LONGEST_MEMORY_MS, NEVER)
    elapsed = np.where(known, np.maximum(time_ms - moment_ms, 0), 0) / _DAY_MS
    return np.where(known, elapsed, np.nan)


def _window_days(window: str) -> float:
    return window_ms(window) / _DAY_MS


def _circle(steps: int) -> tuple[F64, F64]:
    angle = 2 * np.pi * np.arange(steps) / steps
    return np.sin(angle), np.cos(angle)


_DAY_SIN, _DAY_COS = _circle(1440)
_WEEK_SIN, _WEEK_COS = _circle(168)
