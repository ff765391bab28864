"""Publishing: order of labels and events, record times, keys, pace, and stopping."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from stream.clock import ManualClock
from stream.config import Settings, TopicSettings
from stream.events.moments import moment_ms, moment_text
from stream.history.batch import NEVER_MS, UNKNOWN, HistoryBatch, iterate_slices
from stream.kafka.headers import source_ms
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.kafka.partitioner import partition_for
from stream.kafka.port import Record, TopicPartition
from stream.publish import Published, Publisher, newest_event_ms, play, replay
from stream.simulate.live import LiveTraffic
from stream.simulate.simulation import Simulation
from stream.topics import create_topics, plan_topics

TOPICS = TopicSettings()
PARTITIONS = 3
START_MS = 1_767_571_200_000
DAY_MS = 86_400_000
NOW_MS = START_MS + 90 * DAY_MS


class SleepingStop(threading.Event):
    """Waiting moves the clock instead."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self._clock = clock
        self.slept_ms = 0

    def wait(self, timeout: float | None = None) -> bool:
        slept_ms = max(1, round((timeout or 0.0) * 1000))
        self.slept_ms += slept_ms
        self._clock.advance_ms(slept_ms)
        return self.is_set()


@pytest.fixture
def kafka() -> MemoryKafka:
    client = MemoryKafka(MemoryBroker())
    create_topics(client.admin(), plan_topics(Settings(), partitions=PARTITIONS))
    return client


def records(kafka: MemoryKafka, topic: str) -> list[Record]:
    found: list[Record] = []
    for number in range(PARTITIONS):
        log = kafka.broker.log(TopicPartition(topic, number))
        found += log.read(0, log.next_offset)[0]
    return found


def content(record: Record) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(record.value or b"")
    return parsed


def history(days: int = 20, accounts: int = 30, delay_days: float | None = None) -> HistoryBatch:
    batch = Simulation(accounts=accounts, seed=3, fraud_rate=0.1, start_ms=START_MS).generate(
        until_ms=START_MS + days * DAY_MS
    )
    if delay_days is not None:
        batch.known_ms[:] = np.where(batch.fraud == UNKNOWN, NEVER_MS, batch.time_ms + int(delay_days * DAY_MS))
    return batch


def known_at_an_events_time(batch: HistoryBatch) -> HistoryBatch:
    """Each label becomes known at the very moment of the third event after its own."""
    third = np.minimum(np.arange(len(batch)) + 3, len(batch) - 1)
    batch.known_ms[:] = np.where(batch.fraud == UNKNOWN, NEVER_MS, batch.time_ms[third])
    return batch


def replayed(kafka: MemoryKafka, batches: Sequence[HistoryBatch], **options: Any) -> Published:
    clock = ManualClock(NOW_MS)
    publisher = Publisher(kafka.plain_producer(), TOPICS, clock)
    return replay(batches, publisher, clock, SleepingStop(clock), account_field="account_id", **options)


def naive_order(batch: HistoryBatch, wanted: Sequence[int]) -> list[tuple[str, str]]:
    """(topic, event id) in the order in which they must be published: by hand, one event at a time."""
    order: list[tuple[str, str]] = []
    waiting: list[tuple[int, int]] = []
    for row, name in enumerate(batch.text["event_id"]):
        due = sorted(label for label in waiting if label[0] <= batch.time_ms[row])
        order += [("labels", batch.text["event_id"][label]) for _, label in due]
        waiting = [label for label in waiting if label not in due]
        order.append(("transactions", name))
        if row in wanted:
            waiting.append((int(batch.known_ms[row]), row))
    return order


@pytest.mark.parametrize("delay_days", [None, 0.0, 0.01, 3.0, 7.0, "exact"])
@pytest.mark.parametrize("rows", [7, 64, 10_000])
@pytest.mark.parametrize("verdicts", ["fraud", "all", "none"])
def test_labels_go_out_in_their_place_whatever_the_batches(
    kafka: MemoryKafka, delay_days: float | str | None, rows: int, verdicts: str
) -> None:
    batch = known_at_an_events_time(history(12, 12)) if isinstance(delay_days, str) else history(12, 12, delay_days)
    wanted = np.flatnonzero({"fraud": batch.fraud == 1, "all": batch.fraud >= 0, "none": batch.fraud > 9}[verdicts])
    published = replayed(kafka, list(iterate_slices(batch, rows)), verdicts=verdicts)
    expected = naive_order(batch, wanted.tolist())
    both = [*records(kafka, "labels"), *records(kafka, "transactions")]
    times = {(record.topic, content(record)["event_id"]): record.timestamp for record in both}
    assert len(times) == len(expected) == len(both)
    last, last_topic = 0, "labels"
    for topic, name in expected:
        # A label has a millisecond of its own behind the events before it; those after may share it.
        assert times[topic, name] >= last + (topic == "labels" and last_topic == "transactions")
        last, last_topic = times[topic, name], topic
    assert published.events == len(batch)
    assert published.labels == sum(topic == "labels" for topic, _ in expected)
    assert published.labels_not_due == len(wanted) - published.labels


def test_records_are_keyed_by_account_and_carry_when_they_were_due(kafka: MemoryKafka) -> None:
    replayed(kafka, [history(3)])
    found = records(kafka, "transactions")
    assert found
    for record in [*found, *records(kafka, "labels")]:
        assert record.key == content(record)["account_id"].encode()
        assert record.partition == partition_for(record.key, PARTITIONS)
    assert all(source_ms(record.headers) is not None for record in found)


def test_without_source_time_there_is_no_header(kafka: MemoryKafka) -> None:
    publisher = Publisher(kafka.plain_producer(), TOPICS, ManualClock(NOW_MS), with_source_time=False)
    publisher.event(b"a", b"{}")
    publisher.finish()
    assert records(kafka, "transactions")[0].headers == []


def test_speed_divides_the_time_of_the_history(kafka: MemoryKafka) -> None:
    batch, clock = history(2), ManualClock(NOW_MS)
    stop = SleepingStop(clock)
    began_ms = clock.now_ms()
    publisher = Publisher(kafka.plain_producer(), TOPICS, clock)
    replay([batch], publisher, clock, stop, account_field="account_id", speed=3_600.0)
    span_ms = int(batch.time_ms[-1] - batch.time_ms[0])
    assert stop.slept_ms == pytest.approx(span_ms / 3_600, abs=5)
    for record in records(kafka, "transactions"):
        due_ms = began_ms + (moment_ms(content(record)["timestamp"]) - int(batch.time_ms[0])) / 3_600
        assert source_ms(record.headers) == pytest.approx(due_ms, abs=1)
        assert record.timestamp == pytest.approx(due_ms, abs=3)


def test_as_fast_as_it_goes_does_not_wait(kafka: MemoryKafka) -> None:
    clock = ManualClock(NOW_MS)
    stop = SleepingStop(clock)
    replay([history(2)], Publisher(kafka.plain_producer(), TOPICS, clock), clock, stop, account_field="account_id")
    assert stop.slept_ms == 0


def test_a_slow_publisher_says_how_far_it_is_behind_and_when_events_were_due(kafka: MemoryKafka) -> None:
    clock = ManualClock(NOW_MS)
    told: list[int] = []

    class Slow(Publisher):
        def event(self, key: bytes, value: bytes | None, *, due_ms: int | None = None, event_ms: int = 0) -> None:
            clock.advance_ms(100)
            super().event(key, value, due_ms=due_ms, event_ms=event_ms)

    publisher = Slow(kafka.plain_producer(), TOPICS, clock)
    replay(
        [history(9, 50)],
        publisher,
        clock,
        SleepingStop(clock),
        account_field="account_id",
        speed=1e9,
        tell=lambda published: told.append(published.behind_ms),
    )
    assert told[-1] > 20_000
    late = [record.timestamp - (source_ms(record.headers) or 0) for record in records(kafka, "transactions")]
    assert max(late) > 20_000


def test_stopping_ends_in_good_order(kafka: MemoryKafka) -> None:
    clock = ManualClock(NOW_MS)
    stop = SleepingStop(clock)

    def tell(published: Published) -> None:
        stop.set()

    published = replay(
        [history()],
        Publisher(kafka.plain_producer(), TOPICS, clock),
        clock,
        stop,
        account_field="account_id",
        tell=tell,
    )
    assert published.events == 256 == len(records(kafka, "transactions"))


def traffic(clock: ManualClock) -> LiveTraffic:
    simulation = Simulation(accounts=50, seed=5, fraud_rate=0.05, start_ms=START_MS)
    return LiveTraffic(
        simulation, from_ms=START_MS, rate_per_s=500.0, clock=clock, duplicates=0.05, malformed=0.05, seed=1
    )


def test_live_traffic_keeps_its_rate_and_counts_what_it_sent(kafka: MemoryKafka) -> None:
    clock = ManualClock(NOW_MS)
    publisher = Publisher(kafka.plain_producer(), TOPICS, clock)
    published = play(traffic(clock), publisher, clock, SleepingStop(clock), most_events=2_000)
    assert published.events == 2_000 == len(records(kafka, "transactions"))
    assert published.seconds == pytest.approx(4.0, abs=0.1)
    assert published.events_per_s == pytest.approx(500, rel=0.03)
    assert published.duplicates > 50
    assert published.malformed > 50
    assert published.labels == len(records(kafka, "labels"))


def test_the_newest_event_is_found_past_malformed_ones(kafka: MemoryKafka) -> None:
    reader = kafka.reader()
    assert newest_event_ms(reader, "transactions", PARTITIONS, NOW_MS) is None
    clock = ManualClock(NOW_MS)
    play(traffic(clock), Publisher(kafka.plain_producer(), TOPICS, clock), clock, SleepingStop(clock), most_events=500)
    times = []
    for record in records(kafka, "transactions"):
        try:
            times.append(moment_ms(content(record)["timestamp"]))
        except (ValueError, TypeError, KeyError):
            continue
    good = [time for time in times if START_MS <= time < START_MS + 30 * DAY_MS]
    newest = newest_event_ms(reader, "transactions", PARTITIONS, NOW_MS)
    assert newest is not None
    assert newest <= max(good)
    assert max(good) - newest < DAY_MS / 8, moment_text(newest)
