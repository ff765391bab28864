"""What surrounds the workers fails: the store is away, loses data or comes back older; the log is cut; offsets move."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stream.clock import ManualClock
from stream.config import Settings
from stream.engine import partition as partition_module
from stream.engine import worker as worker_module
from stream.errors import CheckpointAheadError, LogTruncatedError, UnavailableError
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.kafka.memory.client import MemoryProducer
from stream.kafka.port import CommittedOffset, TopicPartition
from stream.state.memory import MemoryServer, MemoryStore
from stream.state.store import Checkpoint
from tests.crash.checker import differences, row_differences
from tests.crash.cluster import GROUP, TOPICS, Cluster, Fault, Killed, Play
from tests.crash.traffic import DAY_MS, Chunk, Traffic
from tests.crash.undisturbed import compare, run_undisturbed


def away(play: Play) -> None:
    play.cluster.server.available = False


def back(play: Play) -> None:
    play.cluster.server.available = True


def nothing(play: Play) -> None:
    """Keeps the workers running until this step."""


def flags(cluster: Cluster) -> dict[str, int]:
    """Scores by flag."""
    found: dict[str, int] = {}
    for _, score in cluster.contents().scores.ordered:
        for flag in score["flags"]:
            found[flag] = found.get(flag, 0) + 1
    return found


# --- the store is away


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
    _turn(worker.run_once, clock, 20)
    cluster.server.available = False
    for number in range(40):
        past = traffic.past[traffic.accounts[number % len(traffic.accounts)]]
        cluster.publish(Chunk((traffic.event(past[0]["account_id"], **same), traffic.label(past[-1], fraud=True))))
        _turn(worker.run_once, clock, 2)
    assert 160 < max(map(len, notes)) < 220
    assert cluster.drained() == (policy == "degrade")
    cluster.server.available = True
    _turn(worker.run_once, clock, 60)
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


# --- the store loses data


def unambiguous(traffic: Traffic, rounds: int) -> list[Chunk]:
    """Labels and transactions in turns: with a pause after each, timestamps alone tell where labels were folded."""
    chunks = []
    for _ in range(rounds):
        chunks.append(Chunk(tuple(traffic.event() for _ in range(8))))
        chunks.append(Chunk(tuple(traffic.label() for _ in range(2))))
    return chunks


def play_in_turns(cluster: Cluster, chunks: list[Chunk], happenings: dict[int, Callable[[], object]]) -> None:
    """Publishes chunk after chunk to one worker that finishes each; before chunk i, `happenings[i]`."""
    worker = cluster.worker("w0")
    for number, chunk in enumerate(chunks):
        happenings.get(number, lambda: None)()
        cluster.publish(chunk)
        for _ in range(100):
            worker.run_once()
            cluster.clock.advance_ms(40)
            cluster.check_rows()
            if cluster.drained() and not worker.restoring():
                break
        cluster.clock.advance_ms(1_000)
    for _ in range(100):
        worker.run_once()
        cluster.clock.advance_ms(100)
    worker.finish()
    assert cluster.complaints == []


@pytest.mark.parametrize("lost", ["everything", "checkpoints", "a while", "a flush"])
def test_a_store_that_lost_data_is_rebuilt(clock: ManualClock, lost: str) -> None:
    """FLUSHALL; W alone gone; an older snapshot, hours or one flush old. The scores never show it."""
    cluster = Cluster(clock)
    kept: list[MemoryServer] = []
    server = cluster.server
    losses: dict[str, Callable[[], object]] = {
        "everything": server.flush_all,
        "checkpoints": server.checkpoints.clear,
        "a while": lambda: server.restore(kept[0]),
        "a flush": lambda: server.restore(kept[1]),
    }

    def keep() -> None:
        kept.append(server.snapshot())

    chunks = unambiguous(Traffic(10, 2), 24)
    play_in_turns(cluster, chunks, {4: keep, 33: keep, 36: losses[lost]})
    assert compare(cluster, clock) == []
    if lost in ("everything", "checkpoints"):
        assert cluster.metrics[0].restores.labels("rebuild")._value.get() == 2
    else:
        assert cluster.metrics[0].restores.labels("replay")._value.get() == 2


def test_an_older_snapshot_gets_no_rows_from_the_future(clock: ManualClock) -> None:
    """An account with more than 64 events since the snapshot: its row beside the old W could not be replayed over."""
    cluster = Cluster(clock, partitions=1)
    traffic = Traffic(11, 1)
    account = traffic.accounts[0]
    chunks = [Chunk(tuple(traffic.event(account) for _ in range(10))) for _ in range(14)]
    kept: list[MemoryServer] = []
    back_then = {3: lambda: kept.append(cluster.server.snapshot()), 12: lambda: cluster.server.restore(kept[0])}
    play_in_turns(cluster, chunks, back_then)
    assert compare(cluster, clock) == []


def test_a_store_that_lost_everything_may_start_cold(clock: ManualClock) -> None:
    given = {"state.on_missing_checkpoint": "cold", "state.horizon_days": 7}
    cluster = Cluster(clock, given=given)
    chunks = unambiguous(Traffic(12, 2), 20)
    play_in_turns(cluster, chunks, {20: cluster.server.flush_all, 30: lambda: clock.advance_ms(8 * DAY_MS)})
    contents = cluster.contents()
    cold = ["cold" in score["flags"] for _, score in contents.scores.ordered if score["origin"]["partition"] == 0]
    first, last = cold.index(True), len(cold) - cold[::-1].index(True)
    assert 20 < first < last < len(cold)
    assert all(cold[first:last])
    expected = run_undisturbed(clock, contents, given).contents()
    early = [line for line in differences(contents.scores, expected.scores) if f", {first - 1}):" in line]
    assert early == []


@pytest.mark.parametrize("policy", ["cold", "rebuild"])
def test_that_history_is_missing_outlives_the_worker(clock: ManualClock, policy: str) -> None:
    """No event comes before the worker that began without history is replaced: its successor still says so."""
    cluster = Cluster(clock, partitions=1, given={"state.on_missing_checkpoint": policy})
    traffic = Traffic(20, 1)
    play_in_turns(cluster, [Chunk(tuple(traffic.event() for _ in range(10)))], {})
    cluster.server.flush_all()
    cluster.broker.delete_before(TopicPartition(TOPICS.transactions, 0), 5)
    for worker_id in ("w1", "w2"):
        worker = cluster.worker(worker_id)
        _turn(worker.run_once, clock, 10)
        worker.finish()
    cluster.publish(Chunk((traffic.event(),)))
    worker = cluster.worker("w3")
    _turn(worker.run_once, clock, 10)
    assert "cold" in cluster.contents().scores.ordered[-1][1]["flags"]
    assert cluster.drained()


@pytest.mark.parametrize("done", [True, False])
def test_that_history_is_missing_is_noted_even_if_kafka_stutters(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    """The commit that notes it has no answer: the restore begins again, nothing else is done in that turn."""
    monkeypatch.setattr(_Unsure, "done", done)
    monkeypatch.setattr(_Unsure, "every", 3)
    given = {"state.on_missing_checkpoint": "cold"}
    cluster = Cluster(clock, client=unsure, given=given)
    happenings = {step: (lambda play: play.cluster.server.flush_all()) for step in (20, 40, 60)}
    play = Play(cluster, 21, Traffic(21, 2).chunks(200), [], happenings=happenings)
    assert play.run() == []
    assert flags(cluster)["cold"] > 50


# --- the log and the offsets


def test_offsets_moved_back_are_refused(clock: ManualClock) -> None:
    cluster = Cluster(clock)
    play = Play(cluster, 13, Traffic(13, 2).chunks(80), [])
    assert play.run() == []
    before = dict(cluster.server.rows)
    cluster.move_offsets({("transactions", 1): CommittedOffset(3, "")})
    worker = cluster.worker("w0")
    with pytest.raises(CheckpointAheadError, match=r"partition 1: .*redis\.namespace.*state rebuild"):
        _turn(worker.run_once, clock, 10)
    assert cluster.server.rows == before


def test_offsets_moved_forward_are_replayed(clock: ManualClock) -> None:
    """A tool skipped events and left no note: they are folded, not scored, labels by timestamps."""
    cluster = Cluster(clock)
    traffic = Traffic(14, 2)
    chunks = unambiguous(traffic, 12)
    play_in_turns(cluster, chunks, {})
    for chunk in unambiguous(traffic, 6):
        cluster.publish(chunk)
        clock.advance_ms(1_000)
    ends = cluster.ends()
    cluster.move_offsets({where: CommittedOffset(end, "") for where, end in ends.items()})
    scored = len(cluster.contents().scores.ordered)
    play_in_turns(cluster, unambiguous(traffic, 6), {})
    contents = cluster.contents()
    assert len(contents.scores.ordered) - scored == 48
    expected = _in_turns_from_the_log(clock, cluster)
    origins = {origin for origin, _ in contents.scores.ordered}
    both = [item for item in expected.contents().scores.ordered if item[0] in origins]
    expected_scores = expected.contents().scores
    expected_scores.ordered = both
    assert differences(contents.scores, expected_scores) == []
    assert row_differences(cluster.server.rows, expected.server.rows) == []


def _in_turns_from_the_log(clock: ManualClock, cluster: Cluster) -> Cluster:
    """The same log, done by one worker in the order of the timestamps."""
    other = Cluster(clock, partitions=cluster.partitions)
    worker = other.worker("w0")
    contents = cluster.contents()
    records = [r for found in (contents.transactions, contents.labels) for p in found.values() for r in p]
    for stamp in sorted({record.timestamp for record in records}):
        for record in [record for record in records if record.timestamp == stamp]:
            other.broker.append(record.topic, record.value, key=record.key, headers=record.headers, timestamp_ms=stamp)
        for _ in range(50):
            worker.run_once()
            clock.advance_ms(20)
            if other.drained():
                break
    worker.finish()
    return other


@pytest.mark.parametrize("policy", ["refuse", "continue"])
def test_a_log_cut_between_the_checkpoint_and_the_commit(clock: ManualClock, policy: str) -> None:
    """Retention dropped committed events whose rows had not been flushed."""
    given = {"state.on_truncated_log": policy, "state.flush_interval_ms": 10**6, "kafka.worker_id": "w0"}
    cluster = Cluster(clock, partitions=1, given=given)
    traffic = Traffic(15, 1)
    worker = cluster.worker("w0")
    for _ in range(6):
        cluster.publish(Chunk(tuple(traffic.event() for _ in range(6))))
        worker.run_once()
        worker.run_once()
        clock.advance_ms(100)
    assert cluster.committed()["transactions", 0] == 36
    cluster.broker.delete_before(TopicPartition(TOPICS.transactions, 0), 20)
    cluster.server.checkpoints.update(dict.fromkeys(cluster.server.checkpoints, Checkpoint(8, 0)))
    cluster.publish(Chunk(tuple(traffic.event() for _ in range(6))))
    worker = cluster.worker("w0")
    if policy == "refuse":
        with pytest.raises(LogTruncatedError, match=r"partition 0: .*on_truncated_log=continue"):
            _turn(worker.run_once, clock, 10)
        return
    _turn(worker.run_once, clock, 10)
    worker.finish()
    late = {score["event_id"]: score["flags"] for _, score in cluster.contents().scores.ordered[36:]}
    assert len(late) == 6
    assert all("cold" in found for found in late.values())


def _turn(run_once: Callable[[], None], clock: ManualClock, turns: int) -> None:
    for _ in range(turns):
        run_once()
        clock.advance_ms(50)


# --- Kafka's answers


class _Unsure(MemoryProducer):
    """Commits whose answer is lost: done or not, the client cannot know."""

    done = True
    every = 4
    commits = 0

    def commit(self) -> None:
        _Unsure.commits += 1
        if _Unsure.commits % self.every:
            super().commit()
            return
        if self.done:
            super().commit()
        raise UnavailableError("no answer to the commit")


class _UnsureKafka(MemoryKafka):
    def producer(self, transactional_id: str) -> MemoryProducer:
        return _Unsure(self.broker, transactional_id, 60_000)


def unsure(broker: MemoryBroker, settings: Settings) -> MemoryKafka:
    return _UnsureKafka(broker, settings.kafka)


@pytest.mark.parametrize("done", [True, False])
def test_a_commit_of_unknown_outcome(clock: ManualClock, monkeypatch: pytest.MonkeyPatch, done: bool) -> None:
    monkeypatch.setattr(_Unsure, "done", done)
    cluster = Cluster(clock, client=unsure)
    play = Play(cluster, 16, Traffic(16, 2).chunks(200), [])
    assert play.run() == []
    assert compare(cluster, clock) == []
    assert sum(metrics.aborts._value.get() for metrics in cluster.metrics) > 5


# --- the group


def test_the_worker_that_committed_last_is_not_fenced_for_another(clock: ManualClock) -> None:
    """w0 hands a partition to w1, which dies inside its first transaction there. w2 must not take w0 for dead."""
    cluster = Cluster(clock)
    traffic = Traffic(22, 2)

    def die(point: str) -> None:
        if point == "turn:inside_commit":
            raise Killed

    def publish() -> None:
        cluster.publish(Chunk(tuple(traffic.event(account) for account in traffic.accounts)))

    first = cluster.worker("w0")
    publish()
    _turn(first.run_once, clock, 10)
    second = cluster.worker("w1", die)
    for _ in range(8):
        first.run_once()
        if second.assigned:
            break
        second.run_once()
    publish()
    with pytest.raises(Killed):
        _turn(second.run_once, clock, 10)
    cluster.broker.expel(GROUP, "w1")
    third = cluster.worker("w2")
    for _ in range(400):
        first.run_once()
        third.run_once()
        clock.advance_ms(100)
    assert cluster.drained()
    first.finish()
    third.finish()
    assert compare(cluster, clock) == []


def test_rebalance_storms(clock: ManualClock) -> None:
    """Members are expelled again and again, and another one comes and goes."""
    cluster = Cluster(clock, partitions=3)

    def expel(play: Play) -> None:
        play.expel(play.random.choice(play.slots))

    play = Play(
        cluster, 17, Traffic(17, 3).chunks(250), [], workers=3, happenings=dict.fromkeys(range(5, 90, 4), expel)
    )
    assert play.run() == []
    assert compare(cluster, clock) == []
    assert sum(metrics.rebalances.labels("lost")._value.get() for metrics in cluster.metrics) > 5
    assert sum(metrics.rebalances.labels("revoked")._value.get() for metrics in cluster.metrics) > 5


def test_labels_that_fill_the_queue_do_not_stop_the_worker(clock: ManualClock) -> None:
    """More labels than a turn takes are read before the transactions for which they must wait."""
    cluster = Cluster(clock, partitions=1, given={"batch.max_events": 4})
    traffic = Traffic(18, 1)
    events = tuple(traffic.event() for _ in range(12))
    cluster.publish(Chunk(events))
    clock.advance_ms(1_000)
    known = [event for past in traffic.past.values() for event in past]
    cluster.publish(Chunk(tuple(traffic.label(event, fraud=True) for event in known)))
    worker = cluster.worker("w0")
    _turn(worker.run_once, clock, 30)
    assert cluster.drained()
    assert {score["labels_offset"] for _, score in cluster.contents().scores.ordered} == {0}


def test_a_replay_needs_no_more_memory_than_a_turn(clock: ManualClock) -> None:
    """It reads more at once than a turn takes, and the labels of a stretch may be many."""
    given = {"batch.max_events": 32}
    cluster = Cluster(clock, partitions=1, given=given)
    traffic = Traffic(19, 1)
    chunks = [Chunk(tuple(traffic.event(f"c{t}-{i}", merchant_id=f"m{t}-{i}") for i in range(30))) for t in range(5)]
    chunks.append(Chunk(tuple(traffic.label(past[0], fraud=True) for past in traffic.past.values())))
    chunks.append(Chunk((traffic.event(),)))
    play_in_turns(cluster, chunks, {6: cluster.server.flush_all})
    assert cluster.metrics[0].restores.labels("rebuild")._value.get() == 1
    assert compare(cluster, clock, given=given) == []
