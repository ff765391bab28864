"""Operators of the account: its windows, its gaps, its habits, its place. A window is one of the domain's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stream.features.operators.base import DAY_MS, F64, Magnitude, Plain
from stream.features.operators.event import NIGHT_HOURS
from stream.features.rows import NEVER
from stream.features.spec import window_ms
from stream.features.view import View


@dataclass(frozen=True, slots=True)
class Count(Magnitude):
    """Events of the account in the window, this one included."""

    window: str = "24h"

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.count(self.window))


@dataclass(frozen=True, slots=True)
class Sum(Magnitude):
    """Money of the account in the window, this event included."""

    window: str = "24h"

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.sum(self.window))


@dataclass(frozen=True, slots=True)
class Mean(Magnitude):
    """Money of the account per event in the window, this event included."""

    window: str = "24h"

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.sum(self.window) / view.count(self.window))


@dataclass(frozen=True, slots=True)
class Max(Magnitude):
    """Largest amount among the account's remembered events in the window, this event included; 0 without a rate."""

    window: str = "24h"

    def compute(self, view: View) -> list[F64]:
        return self.scaled(np.maximum(view.largest_minor(self.window), view.amount_minor) / 100.0)


@dataclass(frozen=True, slots=True)
class Distinct(Magnitude):
    """Different values of a field in the account's window, this event's included."""

    field: str = "merchant"
    window: str = "24h"
    counts_distinct: ClassVar[bool] = True

    @property
    def same_fields(self) -> tuple[str, ...]:
        return (self.field,)

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.distinct(self.field, self.window))


@dataclass(frozen=True, slots=True)
class Gap(Magnitude):
    """Seconds since the account's last event; NaN for its first."""

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.gap)


@dataclass(frozen=True, slots=True)
class GapSame(Magnitude):
    """Seconds since the account's last event with the same value of a field; NaN if none is remembered."""

    field: str = "merchant"

    @property
    def same_fields(self) -> tuple[str, ...]:
        return (self.field,)

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.since_same(self.field))


@dataclass(frozen=True, slots=True)
class FirstSeen(Plain):
    """1 where no remembered event of the account has this value of the field, else 0; NaN where it is missing."""

    field: str = "merchant"

    @property
    def same_fields(self) -> tuple[str, ...]:
        return (self.field,)

    def compute(self, view: View) -> list[F64]:
        new = np.isnan(view.since_same(self.field)).astype(np.float64)
        return [np.where(view.code(self.field) != 0, new, np.nan)]


@dataclass(frozen=True, slots=True)
class UsualRate(Magnitude):
    """Events per day before this one, over the window or, if shorter, the account's age (one day at least)."""

    window: str = "30d"

    def compute(self, view: View) -> list[F64]:
        first = view.row("first")
        age = np.where(first > NEVER, view.time_ms - first, 0) / DAY_MS
        days = np.clip(age, 1.0, window_ms(self.window) / DAY_MS)
        return self.scaled((view.count(self.window) - 1.0) / days)


@dataclass(frozen=True, slots=True)
class AccountAge(Magnitude):
    """Days since the account was first seen (or began anew)."""

    def compute(self, view: View) -> list[F64]:
        first = view.row("first")
        return self.scaled(np.where(first > NEVER, np.maximum(view.time_ms - first, 0), 0) / DAY_MS)


@dataclass(frozen=True, slots=True)
class PastEvents(Magnitude):
    """Events of the account so far."""

    def compute(self, view: View) -> list[F64]:
        return self.scaled((view.row("folded") - view.row("since")).astype(np.float64))


@dataclass(frozen=True, slots=True)
class NormMean(Magnitude):
    """The account's usual amount: exp(mean of ln(1 + amount)) - 1.

    Confirmed fraud is excluded; after three events an amount counts at most two spreads from the mean.
    """

    def compute(self, view: View) -> list[F64]:
        return self.scaled(np.expm1(view.norm_mean))


@dataclass(frozen=True, slots=True)
class NormRatio(Plain):
    """ln(1 + amount) less the mean of it over the account's past: the log ratio to the usual amount."""

    def compute(self, view: View) -> list[F64]:
        return [view.log_amount - view.norm_mean]


@dataclass(frozen=True, slots=True)
class NormTimes(Magnitude):
    """The amount over the account's usual amount: exp(NormRatio)."""

    def compute(self, view: View) -> list[F64]:
        return self.scaled(np.exp(np.clip(view.log_amount - view.norm_mean, -20, 20)))


@dataclass(frozen=True, slots=True)
class NormZ(Plain):
    """(ln(1 + amount) - mean) / spread of the account's own past, within -10 to 10."""

    def compute(self, view: View) -> list[F64]:
        return [np.clip((view.log_amount - view.norm_mean) / view.norm_spread, -10.0, 10.0)]


@dataclass(frozen=True, slots=True)
class Excess(Magnitude):
    """Money above `above` times the usual amount, over the usual amount: summed over the account's remembered
    events in the window before this one. NaN without a past.
    """

    window: str = "7d"
    above: float = 2.0

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.excess(self.window, self.above))


@dataclass(frozen=True, slots=True)
class LargestTimes(Magnitude):
    """Largest amount over the usual one, of the account's remembered events in the window before this one;
    0 if there are none, NaN without a past.
    """

    window: str = "14d"

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.largest_minor(self.window) / view.usual_minor)


@dataclass(frozen=True, slots=True)
class HourShare(Plain):
    """Share of the account's past events in this hour of day (UTC) and the two beside it, confirmed fraud
    excluded; NaN without a past.
    """

    def compute(self, view: View) -> list[F64]:
        hours = view.row("hours")
        hour = (view.time_ms // 3_600_000) % 24
        near = np.take_along_axis(hours, (hour[:, None] + np.array([-1, 0, 1])) % 24, axis=1)
        return [view.share_of_past(near.sum(axis=1))]


@dataclass(frozen=True, slots=True)
class NightShare(Plain):
    """Share of the account's past events from midnight to 6 h (UTC), confirmed fraud excluded; NaN without a past."""

    def compute(self, view: View) -> list[F64]:
        return [view.share_of_past(view.row("hours")[:, :NIGHT_HOURS].sum(axis=1))]


@dataclass(frozen=True, slots=True)
class WeekendShare(Plain):
    """Share of the account's past events on Saturday or Sunday (UTC), confirmed fraud excluded; NaN without a past."""

    def compute(self, view: View) -> list[F64]:
        return [view.share_of_past(view.row("weekend"))]


@dataclass(frozen=True, slots=True)
class Distance(Magnitude):
    """Kilometres from the account's last known place; NaN where either is unknown."""

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.distance_km)


@dataclass(frozen=True, slots=True)
class Speed(Magnitude):
    """km/h needed to come from the last known place; NaN where unknown."""

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.speed_kmh)
