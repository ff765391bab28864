"""What the slow twin of the features remembers: events and labels as plain values, in plain lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Event:
    partition: int
    offset: int
    time_ms: int
    amount_minor: int
    """-1 without a rate."""
    account: str
    event_id: str
    entities: Mapping[str, str | None]
    categories: Mapping[str, int]
    latitude: float | None = None
    longitude: float | None = None
    numbers: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Label:
    partition: int
    offset: int
    time_ms: int
    known_ms: int
    fraud: bool
    amount_minor: int
    account: str
    event_id: str
    entities: Mapping[str, str | None]


@dataclass(frozen=True)
class Bounds:
    """What an approximate value must lie in, ends included."""

    low: float
    high: float

    def map(self, function: Callable[[float], float]) -> Bounds:
        return Bounds(function(self.low), function(self.high))


Value = float | Bounds


@dataclass
class Past:
    """An event that the account remembers having had; `fraud` once a label confirmed it."""

    event: Event
    brought: int | None
    """What it brought into the norm; None without a rate."""
    fraud: bool = False
    verdict: str | None = None
    """What a label said while the event was remembered: genuine, fraud or unexplained."""
    taken_out: bool = False
    """Of the norm."""


@dataclass
class Account:
    past: list[Past] = field(default_factory=list)  # since the account began anew
    steps: list[list[Value]] = field(default_factory=list)  # likewise
    ids: list[str] = field(default_factory=list)  # of all events ever folded
    verdicts: list[tuple[str, bool, bool]] = field(default_factory=list)  # event id, fraud, unexplained
    corrections: list[tuple[int, int]] = field(default_factory=list)
    """Of the norm, for events that only it remembers: +1 or -1, and what they bring."""
    frauds: int = 0
    last_fraud: int | None = None

    @property
    def newest(self) -> int | None:
        return max((p.event.time_ms for p in self.past), default=None)

    @property
    def first(self) -> int | None:
        return min((p.event.time_ms for p in self.past), default=None)

    def begin_anew(self) -> None:
        self.past, self.steps, self.corrections, self.frauds, self.last_fraud = [], [], [], 0, None


@dataclass(frozen=True)
class Change:
    """A verdict on an event at an entity: +1, -1 or 0 frauds, and unexplained ones, on a day since 1970."""

    day: int
    fraud: int
    unexplained: int


Seen = tuple[int, str]
"""What an entity knows of an event: amount and account."""


@dataclass
class Shared:
    """One entity as one partition saw it: clock and what was seen of events, and what labels changed."""

    events: list[tuple[int, Seen]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    last_fraud: int | None = None

    @property
    def clock(self) -> int | None:
        return self.events[-1][0] if self.events else None


@dataclass
class Outcome:
    duplicate: bool
    late: bool = False
    saturated: bool = False
    steps: list[list[Value]] = field(default_factory=list)
    """The account's last T step vectors, this event's own last."""
    aggregates: list[Value] = field(default_factory=list)


def latest(one: int | None, other: int | None) -> int | None:
    return max((t for t in (one, other) if t is not None), default=None)
