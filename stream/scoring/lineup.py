"""Which model scores which event: the champion, its successors at stated moments, and the challengers.

The rule is one that every worker can apply alone: of the champions whose moment is not after an event's
Kafka timestamp, the one that was deployed last. A change without a moment holds from the next turn on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from stream.scoring.scorer import Scorer

CHAMPION = "champion"
CHALLENGERS = ("challenger-1", "challenger-2", "challenger-3")
ROLES = (CHAMPION, *CHALLENGERS)

AT_ONCE = -(2**62)
"""The moment of a change that holds for every event from the next turn on."""
_KEPT = 16
"""Former champions that are remembered: a partition that lags may still need one that others have left."""


@dataclass(frozen=True, slots=True)
class Change:
    """A verified model takes a role, or leaves it empty (None: challengers only)."""

    role: str
    scorer: Scorer | None
    from_ms: int = AT_ONCE
    """Kafka timestamp of the first event that a new champion scores; without meaning for challengers."""


class _Entry(NamedTuple):
    from_ms: int
    scorer: Scorer


class Lineup:
    """Owned by the engine's thread: changes come in between two turns, and a turn has one champion."""

    def __init__(self, champion: Scorer | None = None) -> None:
        self._entries = [_Entry(AT_ONCE, champion)] if champion is not None else []
        self._challengers: dict[str, Scorer] = {}
        self._moment = self._newest = AT_ONCE

    @property
    def challengers(self) -> Mapping[str, Scorer]:
        """Role -> scorer, in the order of the roles."""
        return MappingProxyType({role: self._challengers[role] for role in CHALLENGERS if role in self._challengers})

    def changes_between(self, first_ms: int, last_ms: int) -> bool:
        """Whether events of these Kafka timestamps may have different champions."""
        return any(first_ms < entry.from_ms <= last_ms for entry in self._entries)

    def champion_at(self, timestamp_ms: int) -> Scorer | None:
        """The champion of an event with this Kafka timestamp. None: rules only."""
        return next((entry.scorer for entry in reversed(self._entries) if entry.from_ms <= timestamp_ms), None)

    def begin_turn(self, timestamp_ms: int) -> None:
        """Sets whose turn it is: `current` is from now on the champion of this moment."""
        self._moment = timestamp_ms
        self._newest = max(self._newest, timestamp_ms)

    def current(self) -> Scorer | None:
        """The champion of the turn. None: rules only."""
        return self.champion_at(self._moment)

    def apply(self, change: Change) -> None:
        """Takes in a change. ValueError for a champion of None: rules only is no deployment."""
        if change.role == CHAMPION:
            if change.scorer is None:
                raise ValueError("the champion's place is never emptied by a change")
            self._entries.append(_Entry(change.from_ms, change.scorer))
            past = [entry for entry in self._entries if entry.from_ms <= self._newest]
            for entry in past[:-_KEPT]:
                self._entries.remove(entry)
        elif change.scorer is None:
            self._challengers.pop(change.role, None)
        else:
            self._challengers[change.role] = change.scorer

    def drop(self, failed: Scorer) -> Scorer | None:
        """Takes out a champion that failed, for good; returns the one that now serves the turn (None: rules only)."""
        self._entries = [entry for entry in self._entries if entry.scorer is not failed]
        return self.current()

    def drop_challenger(self, role: str) -> None:
        """Takes out a challenger that failed."""
        self._challengers.pop(role, None)
