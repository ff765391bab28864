"""The store does not answer for a while: turns wait, or go on without history; nothing is lost and nothing is wrong."""

from __future__ import annotations

import pytest

from stream.clock import ManualClock
from stream.engine import partition as partition_module
from stream.engine import worker as worker_module
from stream.errors import UnavailableError
from stream.kafka.port import CommittedOffset, TopicPartition
from stream.state.memory import MemoryStore
from tests.crash.cluster import Cluster, Fault, Play
from tests.crash.scenes import flags, turn
from tests.crash.traffic import Chunk, Traffic
from tests.crash.undisturbed import compare


def away(play: Play) -> None:
    play.cluster.server.available = False


def back(play: Play) -> None:
    play.cluster.server.available = True


def nothing(play: Play) -> None:
    """Keeps the workers running until this step."""


@pytest.mark.parametrize("fault", [None, "kill", "replace"])
def test_a_store_that_is_away_is_waited_for(clock: ManualClock, fault: str | None) -> None:
    cluster = Cluster(clock, given={"state.on_store_unavailable": "pause"})
    faults = [Fault("turn:after_commit", 18, fault)] if fault else []
    play = Play(cluster, 3, Traffic(3, 2).chunks(200), faults, happenings={15: away, 60: back, 70: away, 75: back})
    assert play.run() == []
    assert compare(cluster, clock) == []
    assert len(play.struck) == len(faults)


def test_rows_at_hand_serve_on_while_the_store_is_away(clock: ManualClock) -> None:
    """Accounts that are known go on being scored, but no longer than a replay could be exact."""
    traffic = Traffic(4, 1)
    cluster = Cluster(clock, partitions=1)
    worker = cluster.worker("w0")
    account = traffic.accounts[0]

    def score(count: int, turns: int) -> int:
        items = tuple(traffic.event(account, merchant_id="m0-0", device_id=None) for _ in range(count))
        cluster.publish(Chunk(items))
        for _ in range(turns):
            worker.run_once()
            clock.advance_ms(600)
        return cluster.committed()["transactions", 0]

    assert score(5, 5) == 5
    cluster.server.available = False
    assert score(20, 5) == 25
    stuck = score(200, 60)
    assert 5 + 32 < stuck <= 5 + 64
    assert worker.waiting_for_store
    cluster.server.available = True
    assert score(0, 40) == 225
    assert not worker.waiting_for_store
    worker.finish()
    assert compare(cluster, clock) == []


def test_while_nothing_is_read_the_lag_is_seen_to_grow(clock: ManualClock) -> None:
    traffic = Traffic(9, 1)
    cluster = Cluster(clock, partitions=1)
    worker = cluster.worker("w0")
    account = traffic.accounts[0]
    lag = cluster.metrics[0].consumer_lag.labels("transactions", "0")

    def publish(count: int) -> float:
        cluster.publish(Chunk(tuple(traffic.event(account, merchant_id="m0-0") for _ in range(count))))
        for _ in range(30):
            worker.run_once()
            clock.advance_ms(100)
        return float(lag._value.get())

    assert publish(5) == 0
    cluster.server.available = False
    seen = [publish(100) for _ in range(4)]
    done = cluster.committed()["transactions", 0]
    assert worker.waiting_for_store
    assert seen == [105 - done, 205 - done, 305 - done, 405 - done]


@pytest.mark.parametrize("point", ["flush:after_accounts", "flush:after_entities"])
def test_a_crash_after_the_store_was_away_for_long(clock: ManualClock, point: str) -> None:
    """One account has had more events than its ring holds when the flush at last begins, and is cut short."""
    cluster = Cluster(clock, partitions=1, given={"batch.max_events": 32})
    traffic = Traffic(5, 1)
    account = traffic.accounts[0]
    chunks = [Chunk(tuple(traffic.event(account) for _ in range(10))) for _ in range(16)]
    play = Play(cluster, 5, chunks, [], workers=1, happenings={12: away, 60: back})

    def cut(play: Play) -> None:
        play.faults = [Fault(point, play.passed[point] + 1, "kill")]

    play.happenings = {12: away, 60: back, 59: cut}
    assert play.run() == []
    assert compare(cluster, clock) == []
    assert len(play.struck) == 1


@pytest.mark.parametrize("policy", ["pause", "degrade"])
def test_the_note_stays_short_while_the_store_is_away(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """Each turn with labels adds to the commit's note, a flush clears it; there is none, and Kafka has a limit."""
    for module in (worker_module, partition_module):
        monkeypatch.setattr(module, "METADATA_LIMIT", 160)
    cluster = Cluster(clock, partitions=1, given={"state.on_store_unavailable": policy})
    notes = _notes_of(cluster)
    traffic = Traffic(6, 1)
    worker = cluster.worker("w0")
    same = {"merchant_id": "m0-0", "device_id": None}
    cluster.publish(Chunk(tuple(traffic.event(account, **same) for account in traffic.accounts)))
    turn(worker.run_once, clock, 20)
    cluster.server.available = False
    for number in range(40):
        past = traffic.past[traffic.accounts[number % len(traffic.accounts)]]
        cluster.publish(Chunk((traffic.event(past[0]["account_id"], **same), traffic.label(past[-1], fraud=True))))
        turn(worker.run_once, clock, 2)
    assert 160 < max(map(len, notes)) < 220
    assert cluster.drained() == (policy == "degrade")
    cluster.server.available = True
    turn(worker.run_once, clock, 60)
    assert cluster.drained()
    worker.finish()
    if policy == "pause":
        assert compare(cluster, clock) == []


def _notes_of(cluster: Cluster) -> list[str]:
    """The metadata strings of all commits."""
    notes: list[str] = []
    send = cluster.broker.send_offsets

    def sending(
        transactional_id: str, epoch: int, offsets: dict[TopicPartition, CommittedOffset], group: object
    ) -> None:
        notes.extend(where.metadata for where in offsets.values())
        send(transactional_id, epoch, offsets, group)  # type: ignore[arg-type]

    cluster.broker.send_offsets = sending  # type: ignore[method-assign, assignment]
    return notes


def test_degrade_scores_without_history_and_says_so(clock: ManualClock) -> None:
    given = {"state.on_store_unavailable": "degrade"}
    cluster = Cluster(clock, given=given)
    play = Play(cluster, 7, Traffic(7, 2).chunks(250), [], happenings={15: away, 50: back, 80: nothing})
    assert play.run() == []
    assert compare(cluster, clock, given=given) == []
    assert 10 < flags(cluster)["degraded"] < 150


def test_degraded_rows_do_not_fill_the_memory(clock: ManualClock) -> None:
    """More accounts than the arena holds are scored while the store is away."""
    given = {"state.on_store_unavailable": "degrade", "batch.max_events": 32}
    cluster = Cluster(clock, partitions=1, given=given)
    traffic = Traffic(8, 1)
    chunks = [Chunk(tuple(traffic.event(f"b{turn}-{i}", device_id=None) for i in range(24))) for turn in range(10)]
    play = Play(cluster, 8, chunks, [], workers=1, happenings={5: away, 60: back, 90: nothing})
    assert play.run() == []
    assert compare(cluster, clock, given=given) == []
    assert flags(cluster)["degraded"] > 100


@pytest.mark.parametrize("policy", ["pause", "degrade"])
def test_a_store_that_stutters_during_a_restore(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """Every third load fails: what the replay had read by then must come again."""
    given = {"state.flush_interval_ms": 10**6, "batch.max_events": 4, "state.on_store_unavailable": policy}
    cluster = Cluster(clock, given=given)
    calls = 0
    load = MemoryStore.load_rows

    def stutter(self: MemoryStore, *arguments: object) -> list[bytes | None]:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise UnavailableError("the store stutters")
        return load(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(MemoryStore, "load_rows", stutter)
    play = Play(cluster, 9, Traffic(9, 2).chunks(200), [Fault("turn:after_commit", 25, "kill")], workers=1)
    assert play.run() == []
    assert len(play.struck) == 1
    monkeypatch.undo()
    if policy == "pause":
        assert compare(cluster, clock, given=given) == []


def test_a_restore_that_waits_for_the_store_is_counted_at_every_try(clock: ManualClock) -> None:
    cluster = Cluster(clock, partitions=1)
    worker = cluster.worker("w0")
    cluster.server.available = False
    for _ in range(20):
        worker.run_once()
        clock.advance_ms(100)
    assert worker.waiting_for_store
    assert cluster.metrics[0].redis_errors.labels("unavailable")._value.get() > 5, "an alert hangs on it"
