"""From a history or a simulation to Kafka: events and labels in their order, at their pace."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stream.clock import Clock
from stream.config import TopicSettings
from stream.events.moments import NO_MOMENT, moment_ms
from stream.history.batch import HistoryBatch, LabelQueue, wire_json
from stream.kafka.headers import source_header
from stream.kafka.port import PlainProducer, Reader, TopicPartition
from stream.simulate.live import LiveTraffic

Verdicts = Literal["none", "fraud", "all"]
Tell = Callable[["Published"], None]

_IDLE_S = 0.005
_TELL_EVERY = 256
_LOOKED_AT = 20


@dataclass(slots=True)
class Published:
    """What has been published so far."""

    events: int = 0
    duplicates: int = 0
    """Of the events: sent on purpose a second time (simulation only)."""
    malformed: int = 0
    """Of the events: spoilt on purpose (simulation only)."""
    labels: int = 0
    labels_not_due: int = 0
    """Known only after the last event: not published."""
    seconds: float = 0.0
    event_ms: int = 0
    """The time of the last event."""
    behind_ms: int = 0
    """How far the last event was behind its pace."""

    @property
    def events_per_s(self) -> float:
        return self.events / self.seconds if self.seconds > 0 else 0.0


class Publisher:
    """Gives records their key, time and headers. The key is the account, so its events stay in order.

    A record's time is that of publication. A label takes a millisecond of its own: workers order labels and
    events by these times, so a label must be later than the events before it and not later than those behind.
    """

    def __init__(
        self, producer: PlainProducer, topics: TopicSettings, clock: Clock, *, with_source_time: bool = True
    ) -> None:
        """Without a source time, an event takes no part in what is known of latency."""
        self._producer, self._topics, self._clock = producer, topics, clock
        self._with_source_time = with_source_time
        self._last_ms = 0
        self.published = Published()
        self._started = clock.monotonic()

    def event(self, key: bytes, value: bytes | None, *, due_ms: int | None = None, event_ms: int = 0) -> None:
        """`due_ms`: when the source had the event ready, if not now. Blocks while the client's buffer is full."""
        self._last_ms = max(self._last_ms, self._clock.now_ms())
        headers = [source_header(self._last_ms if due_ms is None else due_ms)] if self._with_source_time else []
        self._producer.produce(self._topics.transactions, value, key=key, headers=headers, timestamp_ms=self._last_ms)
        self.published.events += 1
        self.published.event_ms = event_ms

    def label(self, key: bytes, value: bytes | None) -> None:
        """Goes out before every event that is published later. Blocks likewise."""
        self._last_ms = max(self._last_ms + 1, self._clock.now_ms())
        self._producer.produce(self._topics.labels, value, key=key, timestamp_ms=self._last_ms)
        self.published.labels += 1

    def finish(self) -> Published:
        """Blocks until Kafka has acknowledged everything. UnavailableError if it does not."""
        self._producer.flush()
        return self.now()

    def now(self) -> Published:
        """What has been published so far, with the time that it took."""
        self.published.seconds = self._clock.monotonic() - self._started
        return self.published


def replay(
    batches: Iterable[HistoryBatch],
    publisher: Publisher,
    clock: Clock,
    stop: threading.Event,
    *,
    account_field: str,
    speed: float | None = None,
    verdicts: Verdicts = "fraud",
    tell: Tell | None = None,
) -> Published:
    """Publishes a history, each label before the first event that is not older than its becoming known.

    `speed`: seconds of the history per second; None: as fast as it goes. Blocks until done or stopped.
    A label that becomes known after the last event is not published: nobody knows it yet.
    """
    queue = LabelQueue("all" if verdicts == "all" else "fraud")
    pace: _Pace | None = None
    for batch in batches:
        if len(batch) == 0:
            continue
        pace = pace or (_Pace(clock, stop, int(batch.time_ms[0]), speed) if speed is not None else None)
        within = _known_within(batch, verdicts)
        if verdicts != "none":
            queue.push(batch.take(np.setdiff1d(np.arange(len(batch)), sorted(within))))
        for row, (event, event_ms) in enumerate(zip(batch.events(), batch.time_ms.tolist(), strict=True)):
            due_ms = pace.wait_for(event_ms) if pace is not None else None
            if stop.is_set():
                break
            for label in queue.pop(event_ms):
                publisher.label(label[account_field].encode(), wire_json(label))
            publisher.event(event[account_field].encode(), wire_json(event), due_ms=due_ms, event_ms=event_ms)
            if row in within:
                queue.push(batch.take(slice(row, row + 1)))
            if tell is not None and publisher.published.events % _TELL_EVERY == 0:
                publisher.published.behind_ms = pace.behind_ms if pace is not None else 0
                tell(publisher.now())
        if stop.is_set():
            break
    publisher.published.labels_not_due = len(queue)
    return publisher.finish()


def _known_within(batch: HistoryBatch, verdicts: Verdicts) -> frozenset[int]:
    """Rows whose label becomes known before the batch ends: it must not be queued before its own event."""
    if verdicts == "none":
        return frozenset()
    wanted = batch.fraud == 1 if verdicts == "fraud" else batch.fraud >= 0
    return frozenset(np.flatnonzero(wanted & (batch.known_ms <= batch.time_ms[-1])).tolist())


class _Pace:
    """History time as wall-clock time: the first event is due at once."""

    def __init__(self, clock: Clock, stop: threading.Event, first_ms: int, speed: float) -> None:
        self._clock, self._stop, self._speed = clock, stop, speed
        self._first_ms, self._start, self._start_ms = first_ms, clock.monotonic(), clock.now_ms()
        self.behind_ms = 0

    def wait_for(self, event_ms: int) -> int:
        """Blocks until the event is due, or stopped; returns when it was due (wall clock, ms)."""
        due_s = (event_ms - self._first_ms) / 1000 / self._speed
        ahead_s = due_s - (self._clock.monotonic() - self._start)
        # A sleep shorter than this costs more than it paces.
        while ahead_s > 0.001 and not self._stop.is_set():
            self._stop.wait(min(ahead_s, 1.0))
            ahead_s = due_s - (self._clock.monotonic() - self._start)
        self.behind_ms = max(0, int(-ahead_s * 1000))
        return self._start_ms + int(due_s * 1000)


def play(
    traffic: LiveTraffic,
    publisher: Publisher,
    clock: Clock,
    stop: threading.Event,
    *,
    most_events: int | None = None,
    tell: Tell | None = None,
) -> Published:
    """Publishes simulated traffic as it becomes due, until stopped or `most_events`. Blocks."""
    published = publisher.published
    while not stop.is_set():
        due_ms = clock.now_ms()
        messages = traffic.due()
        for message in messages:
            if message.topic == "labels":
                publisher.label(message.key, message.value)
                continue
            if most_events is not None and published.events >= most_events:
                return publisher.finish()
            publisher.event(message.key, message.value, due_ms=due_ms, event_ms=message.event_ms)
            published.duplicates += message.kind == "duplicate"
            published.malformed += message.kind == "malformed"
        if tell is not None:
            tell(publisher.now())
        if not messages:
            stop.wait(_IDLE_S)
    return publisher.finish()


def newest_event_ms(
    reader: Reader, topic: str, partitions: int, now_ms: int, time_field: str = "timestamp"
) -> int | None:
    """The greatest event time up to now among the last records of each partition; None if there are none. Blocks."""
    newest: int | None = None
    for number in range(partitions):
        partition = TopicPartition(topic, number)
        first, end = reader.first_offset(partition), reader.end_offset(partition)
        start = max(first, end - _LOOKED_AT)
        if start >= end:
            continue
        reader.assign({partition: start})
        while reader.position(partition) < end:
            for record in reader.poll(_LOOKED_AT, 500).get(partition, ()):
                found = _time_of(record.value, time_field)
                # A malformed event may claim to be of the year 2099.
                if found is not None and found <= now_ms:
                    newest = max(found, newest or found)
    return newest


def _time_of(value: bytes | None, time_field: str) -> int | None:
    try:
        event = json.loads(value or b"")
    except ValueError:
        return None
    text = event.get(time_field) if isinstance(event, Mapping) else None
    found = moment_ms(text) if isinstance(text, str) else NO_MOMENT
    return None if found == NO_MOMENT else found
