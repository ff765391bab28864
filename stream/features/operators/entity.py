"""Operators of a shared entity: a merchant, a terminal, a device, an address. For aggregates only.

NaN where the event has no such entity. A window is one that the entity declares. Verdicts count on the
day of their event and only once they are known; "delay" is the domain's `label_delay`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from stream.features.event_view import EventView
from stream.features.operators.base import F64, Magnitude, Plain, days_since


@dataclass(frozen=True, slots=True)
class EntityCount(Magnitude):
    """Events of the entity in the window before this one, all accounts."""

    entity: str = "merchant"
    window: str = "24h"
    of_event: ClassVar[bool] = True

    def compute(self, view: EventView) -> list[F64]:
        return self.scaled(view.entity(self.entity).count(self.window))


@dataclass(frozen=True, slots=True)
class EntitySum(Magnitude):
    """Money at the entity in the window before this event, all accounts, by the day; a window of a day or more."""

    entity: str = "merchant"
    window: str = "7d"
    of_event: ClassVar[bool] = True

    def compute(self, view: EventView) -> list[F64]:
        return self.scaled(view.entity(self.entity).sum(self.window))


@dataclass(frozen=True, slots=True)
class EntityMax(Magnitude):
    """Largest amount at the entity in the window before this event, by the day; a window of a day or more."""

    entity: str = "merchant"
    window: str = "7d"
    of_event: ClassVar[bool] = True
    keeps: ClassVar[tuple[str, ...]] = ("day_max",)

    def compute(self, view: EventView) -> list[F64]:
        return self.scaled(view.entity(self.entity).max(self.window))


@dataclass(frozen=True, slots=True)
class EntityAccounts(Magnitude):
    """Different accounts at the entity in the window before this event, by the day; a window of a day or more.

    By linear counting over 64 bits: off by a few in a hundred up to 30 accounts, by a tenth at 100; it ends at 266.
    """

    entity: str = "merchant"
    window: str = "7d"
    of_event: ClassVar[bool] = True
    keeps: ClassVar[tuple[str, ...]] = ("day_accounts",)

    def compute(self, view: EventView) -> list[F64]:
        return self.scaled(view.entity(self.entity).accounts(self.window))


@dataclass(frozen=True, slots=True)
class EntityMeanTimes(Plain):
    """ln of the amount over the entity's mean amount in the window, by the day; NaN without earlier events."""

    entity: str = "merchant"
    window: str = "7d"
    of_event: ClassVar[bool] = True

    def compute(self, view: EventView) -> list[F64]:
        values = view.entity(self.entity)
        count = values.count(self.window)
        mean = values.sum(self.window) / np.maximum(count, 1)
        return [np.where(count > 0, view.log_amount - np.log1p(mean), np.nan)]


@dataclass(frozen=True, slots=True)
class EntityFrauds(Magnitude):
    """Confirmed frauds among the entity's events of the last (delay + window), in whole days of its clock."""

    entity: str = "merchant"
    window: str = "30d"
    unexplained: bool = False
    of_event: ClassVar[bool] = True

    def compute(self, view: EventView) -> list[F64]:
        return self.scaled(view.entity(self.entity).frauds(self.window, unexplained=self.unexplained))


@dataclass(frozen=True, slots=True)
class EntityFraudShare(Plain):
    """(frauds + 0.01) / (events + 1) over the window that ended the delay ago, so that both speak of the same events.

    In days of the entity's clock: the window's whole days, and of the day whose verdicts are arriving the
    share that has elapsed of the clock's own.
    """

    entity: str = "merchant"
    window: str = "30d"
    unexplained: bool = False
    of_event: ClassVar[bool] = True

    def compute(self, view: EventView) -> list[F64]:
        return [view.entity(self.entity).fraud_share(self.window, unexplained=self.unexplained)]


@dataclass(frozen=True, slots=True)
class EntitySinceFraud(Magnitude):
    """Days since a fraud at the entity last became known; NaN if none did in 30 days."""

    entity: str = "merchant"
    of_event: ClassVar[bool] = True

    def compute(self, view: EventView) -> list[F64]:
        return self.scaled(days_since(view.entity(self.entity).last_fraud_ms(), view.time_ms))


@dataclass(frozen=True, slots=True)
class EntitySinceGenuine(Magnitude):
    """Days back to the newest day, older than the delay, with an event not confirmed as fraud; NaN if none is kept."""

    entity: str = "merchant"
    of_event: ClassVar[bool] = True

    def compute(self, view: EventView) -> list[F64]:
        return self.scaled(view.entity(self.entity).days_since_genuine())


@dataclass(frozen=True, slots=True)
class EntityStreak(Magnitude):
    """Confirmed frauds on the days after the newest one that EntitySinceGenuine speaks of: all that came was fraud."""

    entity: str = "merchant"
    unexplained: bool = False
    of_event: ClassVar[bool] = True

    def compute(self, view: EventView) -> list[F64]:
        return self.scaled(view.entity(self.entity).streak(unexplained=self.unexplained))


@dataclass(frozen=True, slots=True)
class EntityStreakAge(Magnitude):
    """Days back to the first fraud of that streak; NaN without one."""

    entity: str = "merchant"
    unexplained: bool = False
    of_event: ClassVar[bool] = True

    def compute(self, view: EventView) -> list[F64]:
        return self.scaled(view.entity(self.entity).streak_age(unexplained=self.unexplained))
