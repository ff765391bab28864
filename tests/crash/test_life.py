"""The life of one worker: it runs until told to stop, leaves everything written, and dies only of what it must."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise

import pytest

from stream.clock import ManualClock
from stream.errors import FencedError, TopicError, UnavailableError
from stream.kafka.memory.client import MemoryConsumer
from stream.kafka.port import TopicPartition
from tests.crash.cluster import GROUP, TOPICS, Cluster
from tests.crash.traffic import Chunk, Item, Traffic
from tests.crash.undisturbed import compare


class Stop:
    """Told at the n-th poll. Keeps the clock going."""

    def __init__(
        self, clock: ManualClock, turns: int, happenings: dict[int, Callable[[], object]] | None = None
    ) -> None:
        self.event, self.turns, self.clock = threading.Event(), turns, clock
        self.happenings = happenings or {}

    def __call__(self, point: str) -> None:
        if point != "turn:after_poll":
            return
        self.clock.advance_ms(10)
        self.turns -= 1
        self.happenings.get(self.turns, lambda: None)()
        if self.turns == 0:
            self.event.set()


def events(traffic: Traffic, count: int) -> Chunk:
    return Chunk(tuple(traffic.event() for _ in range(count)))


def test_told_to_stop_it_finishes_flushes_and_leaves(clock: ManualClock) -> None:
    """In the middle of its work: what is done is committed and flushed, the rest is another's."""
    cluster = Cluster(clock)
    traffic = Traffic(1, 2)
    cluster.publish(events(traffic, 100))
    stop = Stop(clock, 6)
    worker = cluster.worker("w0", stop)
    worker.run(stop.event)
    assert 0 < sum(cluster.committed().values()) < 100, "it stopped in between"
    assert cluster.broker.group(GROUP).members == {}
    committed = cluster.committed()
    expected = [(committed[TOPICS.transactions, p], committed[TOPICS.labels, p]) for p in range(2)]
    assert sorted(cluster.server.checkpoints.values()) == sorted(expected)
    cluster.check_rows()
    assert cluster.complaints == []
    follow = Stop(clock, 40)
    cluster.worker("w1", follow).run(follow.event)
    assert cluster.drained()
    assert compare(cluster, clock) == []


def test_a_store_that_is_away_at_the_end_does_not_hold_it_up(clock: ManualClock) -> None:
    cluster = Cluster(clock)
    cluster.publish(events(Traffic(2, 2), 40))
    given = {3: lambda: setattr(cluster.server, "available", False)}
    stop = Stop(clock, 12, given)
    cluster.worker("w0", stop).run(stop.event)
    assert cluster.broker.group(GROUP).members == {}
    cluster.server.available = True
    follow = Stop(clock, 40)
    cluster.worker("w1", follow).run(follow.event)
    assert cluster.drained()
    assert compare(cluster, clock) == []


def test_it_waits_while_kafka_is_away(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(clock)
    cluster.publish(events(Traffic(3, 2), 60))
    poll, failures = MemoryConsumer.poll, [0]

    def stuttering(self: MemoryConsumer, max_records: int, timeout_ms: int) -> object:
        failures[0] += 1
        if failures[0] % 3 == 0:
            raise UnavailableError("no broker answers")
        return poll(self, max_records, timeout_ms)

    monkeypatch.setattr(MemoryConsumer, "poll", stuttering)
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None: self.is_set())
    stop = Stop(clock, 30)
    cluster.worker("w0", stop).run(stop.event)
    monkeypatch.undo()
    assert failures[0] > 30
    assert cluster.drained()
    assert compare(cluster, clock) == []


def test_events_gather_between_turns_unless_a_full_turn_waits(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(clock, given={"batch.linger_ms": 50})
    traffic = Traffic(8, 2)
    waits: list[tuple[float, int]] = []
    stop = Stop(clock, 10_000)

    def wait(self: threading.Event, timeout: float | None = None) -> bool:
        if timeout:
            waits.append((timeout, sum(cluster.committed().values())))
            if len(waits) > 30:
                stop.event.set()
            elif len(waits) <= 20:
                cluster.publish(events(traffic, 3 if len(waits) > 1 else 100))
            clock.advance_ms(int(timeout * 1000))
        return self.is_set()

    monkeypatch.setattr(threading.Event, "wait", wait)
    cluster.worker("w0", stop).run(stop.event)
    monkeypatch.undo()
    assert max(seconds for seconds, _ in waits) <= 0.05
    assert min(seconds for seconds, _ in waits) > 0.02, "a poll takes 10 ms of this clock"
    gained = [after - before for (_, before), (_, after) in pairwise(waits)]
    assert gained[0] > 100 - 16, "a backlog does not wait"
    assert set(gained[2:20]) == {3}, "what came meanwhile is one turn"
    assert cluster.drained()
    assert compare(cluster, clock) == []


def test_of_two_with_one_id_the_older_ends_and_writes_nothing_more(clock: ManualClock) -> None:
    cluster = Cluster(clock)
    traffic = Traffic(4, 2)
    cluster.publish(events(traffic, 30))
    older = cluster.worker("w0")
    for _ in range(6):
        older.run_once()
    newer = cluster.worker("w0")
    cluster.publish(events(traffic, 30))
    for _ in range(10):
        newer.run_once()
        clock.advance_ms(100)
    before = dict(cluster.server.rows)
    with pytest.raises(FencedError):
        older.run_once()
    assert cluster.server.rows == before
    assert cluster.drained()
    newer.finish()
    assert compare(cluster, clock) == []


def test_what_it_says_of_itself(clock: ManualClock) -> None:
    """Partitions, and how much is still to be replayed: what readiness is made of."""
    cluster = Cluster(clock, partitions=1, given={"state.flush_interval_ms": 10**6, "batch.max_events": 4})
    traffic = Traffic(5, 1)
    cluster.publish(events(traffic, 60))
    first = cluster.worker("w0")
    for _ in range(20):
        first.run_once()
    assert (first.assigned, first.restoring()) == (1, {})
    done = sum(cluster.committed().values())
    second = cluster.worker("w0")
    seen = []
    for _ in range(12):
        second.run_once()
        seen.append(second.restoring().get(0))
    waiting = [left for left in seen if left is not None]
    assert waiting[0] > 0
    assert waiting == sorted(waiting, reverse=True)
    assert max(waiting) < done
    assert seen[-1] is None
    assert not second.waiting_for_store


def test_a_turn_that_a_busy_account_cuts_short_takes_each_message_once(clock: ManualClock) -> None:
    """Events, poison and duplicates before and behind the cut; the next turns take about what can be used."""
    cluster = Cluster(
        clock,
        partitions=2,
        given={"batch.max_events": 2_000, "state.arena_accounts": 4_000, "state.arena_entities": 4_000},
    )
    traffic = Traffic(6, 2, accounts_each=2)
    messages = [Item("transactions", b"x", b"poison") if i % 9 == 4 else traffic.event() for i in range(1_200)]
    cluster.publish(Chunk(tuple(messages)))
    worker = cluster.worker("w0")
    reads = []
    while not cluster.drained():
        before = sum(cluster.committed().values())
        worker.run_once()
        clock.advance_ms(20)
        reads.append(sum(cluster.committed().values()) - before)
    worker.finish()
    # Half of the events are of two busy accounts.
    assert max(reads) < 400
    dead = [origin for origin, _ in cluster.contents().dead_letters.ordered]
    assert len(dead) == len(set(dead)) == sum(item.value == b"poison" for item in messages)
    assert compare(cluster, clock) == []


def test_a_turn_that_labels_of_one_account_cut_short_takes_each_message_once(clock: ManualClock) -> None:
    """Poison before and behind the cut; the transactions published behind the labels that wait are not lost."""
    cluster = Cluster(clock, partitions=2)
    traffic = Traffic(8, 2, accounts_each=1)
    cluster.publish(Chunk(tuple(traffic.event() for _ in range(80))))
    clock.advance_ms(1_000)
    known = [event for past in traffic.past.values() for event in past]
    sent: list[Item] = []
    for i, event in enumerate(known):
        sent.append(traffic.label(event, fraud=i % 2 == 0))
        if i % 5 == 0:
            sent.append(Item("labels", sent[-1].key, b"poison"))
    cluster.publish(Chunk(tuple(sent)))
    clock.advance_ms(1_000)
    cluster.publish(Chunk(tuple(traffic.event() for _ in range(20))))
    worker = cluster.worker("w0")
    while not cluster.drained():
        worker.run_once()
        clock.advance_ms(20)
    worker.finish()
    dead = [origin for origin, _ in cluster.contents().dead_letters.ordered]
    assert len(dead) == len(set(dead)) == sum(item.value == b"poison" for item in sent)
    assert compare(cluster, clock) == []


def test_topics_that_cannot_work_together_stop_the_start(clock: ManualClock) -> None:
    cluster = Cluster(clock)
    cluster.broker._topics.pop(TOPICS.alerts)
    with pytest.raises(TopicError, match="alerts"):
        cluster.worker("w0")
    cluster.broker.create_topic(TOPICS.alerts, partitions=5)
    cluster.broker._topics.pop(TOPICS.labels)
    cluster.broker.create_topic(TOPICS.labels, partitions=3)
    with pytest.raises(TopicError, match="same number"):
        cluster.worker("w0")


def test_a_message_of_another_key_goes_where_it_lies(clock: ManualClock) -> None:
    """A producer with an own partitioner: the state is of the partition, so nothing is lost, only divided."""
    cluster = Cluster(clock)
    traffic = Traffic(6, 2)
    items = [traffic.event("a0") for _ in range(10)]
    for place, item in enumerate(items):
        assert isinstance(item, Item)
        cluster.broker.append("transactions", item.value, key=None, partition=place % 2)
    worker = cluster.worker("w0")
    for _ in range(12):
        worker.run_once()
    contents = cluster.contents()
    assert {origin[1:] for origin, _ in contents.scores.ordered} == {(p, o) for p in (0, 1) for o in range(5)}
    assert cluster.broker.log(TopicPartition("risk-scores", 1)).next_offset > 0
