"""Operators of the verdicts on an account's own events, each known only from the moment that it arrived.

They look at the account's remembered events. One older than "the delay" (the domain's `label_delay`) and not
confirmed as fraud counts as genuine, as does one with a verdict that says so. A fraud is *unexplained* when
its amount was normal for the account: it points at the terminal, not at the card.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream.features.operators.base import F64, Magnitude, Plain, days_since
from stream.features.view import View


@dataclass(frozen=True, slots=True)
class Frauds(Magnitude):
    """Confirmed frauds of the account that were known at this event's place in the log."""

    def compute(self, view: View) -> list[F64]:
        return self.scaled(np.maximum(view.row("frauds"), 0).astype(np.float64))


@dataclass(frozen=True, slots=True)
class RecentFrauds(Magnitude):
    """Confirmed frauds among the account's events of the last (delay + window)."""

    window: str = "30d"
    unexplained: bool = False

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.verdicts.frauds(self.window, unexplained=self.unexplained))


@dataclass(frozen=True, slots=True)
class FraudShare(Plain):
    """(frauds + 0.01) / (events + 1) of the account over the window that ended the delay ago, in (t - delay - window,
    t - delay], so that both speak of the same events.
    """

    window: str = "30d"
    unexplained: bool = False

    def compute(self, view: View) -> list[F64]:
        return [view.verdicts.share(self.window, unexplained=self.unexplained)]


@dataclass(frozen=True, slots=True)
class SinceFraud(Magnitude):
    """Days since a fraud of the account last became known; NaN if none did in 30 days."""

    def compute(self, view: View) -> list[F64]:
        return self.scaled(days_since(view.row("last_fraud"), view.time_ms))


@dataclass(frozen=True, slots=True)
class SinceGenuine(Magnitude):
    """Days since the account's newest event known to be genuine; NaN if none is remembered."""

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.verdicts.days_since_genuine)


@dataclass(frozen=True, slots=True)
class Streak(Magnitude):
    """Confirmed frauds since the account's newest event known to be genuine."""

    unexplained: bool = False

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.verdicts.streak(unexplained=self.unexplained)[0])


@dataclass(frozen=True, slots=True)
class StreakAge(Magnitude):
    """Days since the first fraud of that streak; NaN without one."""

    unexplained: bool = False

    def compute(self, view: View) -> list[F64]:
        return self.scaled(view.verdicts.streak(unexplained=self.unexplained)[1])
