"""Live traffic: the simulated timeline played at a constant rate of messages.

Which clock the events carry is a choice. With the wall clock, 200 events a second of 2,000 accounts
would be 8,600 payments per account and day: no history looks like that, and a model trained on one
would call everything fraud. Millions of accounts would make the rate natural, but then hardly any
account comes twice in a minute, and nothing has a history. So the timeline keeps its own clock:
it continues where the history ends, every habit and every window stays as in the history, and only
its playing is fast. With 2,000 accounts (about 6,000 payments a day) at 200 a second, a minute of
playing is two days. The timeline must therefore begin in the past (`Simulation.start_before`); when
it has caught up with the wall clock, an event waits until its own time, and the traffic is natural.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from stream.clock import Clock
from stream.events.moments import moment_ms, moment_text
from stream.history.batch import HistoryBatch, LabelQueue, concatenate, iterate_slices, wire_json
from stream.simulate.payments import DAY_MS
from stream.simulate.simulation import LABEL_MATURITY_DAYS, Simulation

_PIECE = 256  # events made into messages at once: more would stall a fast player
_RECENT = 32  # a duplicate repeats one of so many messages, well within an account's last 64 events


class Message(NamedTuple):
    """One message to produce. `kind` says what it is, for counting; it is not on the wire."""

    topic: Literal["transactions", "labels"]
    kind: Literal["event", "duplicate", "malformed", "label"]
    key: bytes
    value: bytes | None
    event_ms: int
    """The timeline's time: of the event, or of the label's becoming known."""


class LiveTraffic:
    """Messages of a simulation from `from_ms` on, paced to `rate_per_s` messages on the transactions topic.

    Labels of earlier payments (also of those before `from_ms`) come between, when the timeline passes
    the moment at which they became known; they do not count into the rate. `duplicates` and
    `malformed` are extra messages, as shares of the events. With `opening`, three bursts of fraud
    begin within the first quarter of an hour of the timeline, so that a short demo has something to show.
    The messages follow from the simulation and `seed`; the clock decides only when each is due.
    """

    def __init__(
        self,
        simulation: Simulation,
        *,
        from_ms: int,
        rate_per_s: float,
        clock: Clock,
        seed: int = 0,
        duplicates: float = 0.002,
        malformed: float = 0.002,
        opening: bool = True,
    ) -> None:
        if rate_per_s <= 0:
            raise ValueError("rate_per_s must be above 0")
        self._simulation = simulation
        self._from_ms = from_ms
        self._rate_per_s = rate_per_s
        self._clock = clock
        self._rng = np.random.default_rng((seed, 77))
        self._duplicates = duplicates
        self._malformed = malformed
        self._opening = opening
        self._messages = self._make()
        self._next: Message | None = None
        self._started: float | None = None
        self._paced = 0

    def due(self, limit: int = 1_000) -> list[Message]:
        """The messages due by now, at most `limit`, in order. Does not block or sleep.

        A caller that fell behind gets the backlog; the first call starts the clock.
        """
        if self._started is None:
            self._started = self._clock.monotonic()
        allowed = (self._clock.monotonic() - self._started) * self._rate_per_s
        now_ms = self._clock.now_ms()
        messages: list[Message] = []
        while len(messages) < limit:
            if self._next is None:
                self._next = next(self._messages)
            if self._next.topic == "transactions" and self._paced >= allowed:
                break
            if self._next.event_ms > now_ms:
                break
            messages.append(self._next)
            self._paced += self._next.topic == "transactions"
            self._next = None
        return messages

    def take(self, count: int) -> list[Message]:
        """The next `count` messages whatever the clock says: for tests, and for filling a topic quickly."""
        waiting = [] if self._next is None else [self._next]
        self._next = None
        return waiting + [next(self._messages) for _ in range(count - len(waiting))]

    def _make(self) -> Iterator[Message]:
        labels = LabelQueue()
        labels.push(
            self._simulation.generate(from_ms=self._from_ms - LABEL_MATURITY_DAYS * DAY_MS, until_ms=self._from_ms)
        )
        labels.pop(self._from_ms - 1)  # known before the traffic begins: part of the history
        recent: deque[Message] = deque(maxlen=_RECENT)
        for piece in self._pieces():
            labels.push(piece)
            chance = self._rng.random((len(piece), 2))
            events = piece.events()
            for row, (event, event_ms) in enumerate(zip(events, piece.time_ms.tolist(), strict=True)):
                yield from _label_messages(labels, event_ms)
                key = event["account_id"].encode()
                message = Message("transactions", "event", key, wire_json(event), event_ms)
                recent.append(message)
                yield message
                if chance[row, 0] < self._duplicates:
                    again = recent[int(self._rng.integers(len(recent)))]
                    yield again._replace(kind="duplicate", event_ms=event_ms)
                if chance[row, 1] < self._malformed:
                    yield Message("transactions", "malformed", key, self._spoil(event), event_ms)

    def _pieces(self) -> Iterator[HistoryBatch]:
        waiting = self._simulation.opening(self._from_ms)
        if not self._opening:
            waiting = waiting.take(slice(0, 0))
        for batch in self._simulation.days(self._from_ms):
            merged = batch
            if len(waiting) and len(batch):
                # An episode may last past midnight: its rest waits for the next day.
                cut = int(np.searchsorted(waiting.time_ms, batch.time_ms[-1]))
                merged = concatenate([batch, waiting.take(slice(0, cut))])
                merged = merged.take(np.argsort(merged.time_ms, kind="stable"))
                waiting = waiting.take(slice(cut, None))
            yield from iterate_slices(merged, _PIECE)

    def _spoil(self, event: dict[str, Any]) -> bytes | None:
        """A message that must become a dead letter, made from a good event."""
        kind = _SPOILERS[int(self._rng.integers(len(_SPOILERS)))]
        return kind({**event, "event_id": f"bad-{event['event_id']}"})


def _label_messages(labels: LabelQueue, until_ms: int) -> Iterator[Message]:
    for label in labels.pop(until_ms):
        known_ms = moment_ms(label["labelled_at"])
        yield Message("labels", "label", label["account_id"].encode(), wire_json(label), known_ms)


def _without(field: str) -> Callable[[dict[str, Any]], bytes]:
    return lambda event: wire_json({name: value for name, value in event.items() if name != field})


def _with(field: str, value: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda event: wire_json({**event, field: value})


_SPOILERS: tuple[Callable[[dict[str, Any]], bytes | None], ...] = (
    lambda event: wire_json(event)[:-20],  # cut off: not JSON
    lambda event: wire_json(event)[:-1] + b',"note":"\xff\xfe"}',  # not UTF-8
    lambda event: b"[1, 2, 3]",  # JSON of another shape
    lambda event: None,  # no value at all
    _without("account_id"),
    _without("amount"),
    _with("account_id", ""),
    _with("amount", -5.0),
    _with("amount", "12.50"),
    _with("amount", 1e15),
    _with("currency", "ZZZ"),
    _with("timestamp", "yesterday"),
    _with("timestamp", moment_text(4_070_908_800_000)),  # the year 2099
)
