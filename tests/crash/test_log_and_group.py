"""Kafka side: offsets moved by a tool, a log cut by retention, commits without an answer, members coming and going."""

from __future__ import annotations

import pytest

from stream.clock import ManualClock
from stream.engine.worker import Worker
from stream.errors import CheckpointAheadError, LogTruncatedError, UnavailableError
from stream.kafka.port import CommittedOffset, TopicPartition
from stream.state.memory import MemoryStore
from stream.state.store import Checkpoint
from tests.checker.checks import differences, row_differences
from tests.crash.cluster import GROUP, TOPICS, Cluster, Killed, Play
from tests.crash.scenes import Unsure, play_in_turns, turn, unambiguous, unsure
from tests.crash.small import DOMAIN
from tests.crash.traffic import Chunk, Traffic
from tests.crash.undisturbed import compare


def test_offsets_moved_back_are_refused(clock: ManualClock) -> None:
    cluster = Cluster(clock)
    play = Play(cluster, 13, Traffic(13, 2).chunks(80), [])
    assert play.run() == []
    before = dict(cluster.server.rows)
    cluster.move_offsets({("transactions", 1): CommittedOffset(3, "")})
    worker = cluster.worker("w0")
    with pytest.raises(CheckpointAheadError, match=r"partition 1: .*redis\.namespace.*state rebuild"):
        turn(worker.run_once, clock, 110)
    assert cluster.server.rows == before


class Three:
    """A partition's life at three moments: with `restore` and `move_offsets`, what a crash of the servers leaves."""

    def __init__(self, clock: ManualClock) -> None:
        self.cluster, self._traffic = Cluster(clock), Traffic(13, 2)
        self._offsets_after(10)
        self.early = self.cluster.server.snapshot()
        self.old, self.offsets = self._offsets_after(15), self._offsets_after(5)
        self._before = self._outcome()

    def _offsets_after(self, rounds: int) -> dict[tuple[str, int], CommittedOffset]:
        play_in_turns(self.cluster, unambiguous(self._traffic, rounds), {})
        return {(tp.topic, tp.partition): at for tp, at in self.cluster.broker.group(GROUP).offsets.items()}

    def _outcome(self) -> tuple[dict[bytes, bytes], int, int]:
        contents = self.cluster.contents()
        return dict(self.cluster.server.rows), len(contents.scores.ordered), len(contents.dead_letters.ordered)

    def check(self, worker: Worker, turns: int) -> None:
        """It comes to rest: nothing was scored twice, every row is as it was, and the group stands where it stood."""
        turn(worker.run_once, self.cluster.clock, turns)
        assert not worker.restoring()
        worker.finish()
        rows, *counts = self._outcome()
        assert counts == list(self._before[1:])
        assert row_differences(rows, self._before[0]) == []
        assert self.cluster.committed() == {where: at.offset for where, at in self.offsets.items()}


def test_offsets_behind_the_checkpoint_for_a_moment_are_waited_for(clock: ManualClock) -> None:
    three = Three(clock)
    three.cluster.move_offsets(three.old)
    worker = three.cluster.worker("w0")
    turn(worker.run_once, clock, 40)
    assert worker.restoring()
    three.cluster.move_offsets(three.offsets)
    three.check(worker, 40)


@pytest.mark.parametrize("store", ["is as it was", "came back older", "is empty"])
@pytest.mark.parametrize("answers", ["older offsets", "no offsets"])
def test_a_coordinator_that_has_crashed_is_not_believed_before_something_is_written(
    clock: ManualClock, store: str, answers: str
) -> None:
    """Nothing is refused, and nothing is scored twice, with rows or without."""
    three = Three(clock)
    if store == "came back older":
        three.cluster.server.restore(three.early)
    elif store == "is empty":
        three.cluster.server.flush_all()
    old = {TopicPartition(*where): offset for where, offset in three.old.items()}
    three.cluster.broker.group(GROUP).older = old if answers == "older offsets" else {}
    three.check(three.cluster.worker("w0"), 400)


def test_nor_after_a_crash_while_the_former_owner_is_looked_for(clock: ManualClock) -> None:
    """What was written before it no longer counts."""
    three = Three(clock)
    three.cluster.server.flush_all()
    group = three.cluster.broker.group(GROUP)
    crashed: list[str] = []

    def crash(point: str) -> None:
        if point == "restore:after_claim" and not crashed:
            crashed.append(point)
            group.older = {TopicPartition(*where): offset for where, offset in three.old.items()}
            raise UnavailableError("the broker has crashed")

    three.check(three.cluster.worker("w0", crash), 400)
    assert crashed


def test_a_worker_that_was_expelled_claims_nothing(clock: ManualClock) -> None:
    """It does not know yet: the store must go on to serve the one who has the partitions."""
    cluster = Cluster(clock)
    play_in_turns(cluster, unambiguous(Traffic(13, 2), 10), {})
    store = MemoryStore(cluster.settings("w1").state_namespace, DOMAIN.spec_id, cluster.server)
    claimed = [store.load_head(number) for number in range(cluster.partitions)]
    assert all(claimed)

    def expel(point: str) -> None:
        if point == "turn:after_poll":
            cluster.broker.expel(GROUP, "w1")

    worker = cluster.worker("w1", expel)
    turn(worker.run_once, clock, 10)
    assert [store.load_head(number) for number in range(cluster.partitions)] == claimed


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
    older = {name: head.written(Checkpoint(8, 0)) for name, head in cluster.server.heads.items()}
    cluster.server.heads.update(older)
    cluster.publish(Chunk(tuple(traffic.event() for _ in range(6))))
    worker = cluster.worker("w0")
    if policy == "refuse":
        with pytest.raises(LogTruncatedError, match=r"partition 0: .*on_truncated_log=continue"):
            turn(worker.run_once, clock, 10)
        return
    turn(worker.run_once, clock, 10)
    worker.finish()
    late = {score["event_id"]: score["flags"] for _, score in cluster.contents().scores.ordered[36:]}
    assert len(late) == 6
    assert all("cold" in found for found in late.values())


@pytest.mark.parametrize("policy", ["refuse", "continue"])
def test_a_log_that_lost_events_before_they_were_scored(clock: ManualClock, policy: str) -> None:
    """Nobody worked for longer than records are kept. What is gone cannot be scored: it is refused, or flagged."""
    cluster = Cluster(clock, partitions=1, given={"state.on_truncated_log": policy})
    traffic = Traffic(25, 1)
    play_in_turns(cluster, [Chunk(tuple(traffic.event() for _ in range(10)))], {})
    cluster.publish(Chunk(tuple(traffic.event() for _ in range(20))))
    cluster.broker.delete_before(TopicPartition(TOPICS.transactions, 0), 25)
    worker = cluster.worker("w0")
    if policy == "refuse":
        with pytest.raises(LogTruncatedError, match=r"partition 0: .* before it was scored"):
            turn(worker.run_once, clock, 10)
        assert cluster.committed()[TOPICS.transactions, 0] == 10
        return
    turn(worker.run_once, clock, 10)
    worker.finish()
    scores = [score for _, score in cluster.contents().scores.ordered]
    assert [score["origin"]["offset"] for score in scores] == [*range(10), *range(25, 30)]
    assert ["cold" in score["flags"] for score in scores] == [False] * 10 + [True] * 5


@pytest.mark.parametrize("end", ["commit", "abort"])
@pytest.mark.parametrize("stop", [True, False])
def test_markers_behind_the_last_event_are_not_taken_for_lost_events(clock: ManualClock, end: str, stop: bool) -> None:
    """A log that expires down to its end: told to stop, or after a quiet while, C has moved past the markers."""
    cluster = Cluster(clock, partitions=1)
    traffic = Traffic(26, 1)
    worker = cluster.worker("w0")
    cluster.publish(Chunk(tuple(traffic.event() for _ in range(10)), "commit"))
    cluster.publish(Chunk(tuple(traffic.event() for _ in range(3)), end))
    turn(worker.run_once, clock, 20)
    where = TopicPartition(TOPICS.transactions, 0)
    last = cluster.ends()[tuple(where)]
    assert cluster.committed()[tuple(where)] == last
    if stop:
        worker.finish()
    else:
        clock.advance_ms(10_000)
        turn(worker.run_once, clock, 20)
    behind = cluster.broker.log(where).next_offset
    assert cluster.committed()[tuple(where)] == behind > last
    cluster.broker.delete_before(where, behind)
    cluster.broker.expel(GROUP, "w0")
    cluster.publish(Chunk(tuple(traffic.event() for _ in range(5))))
    other = cluster.worker("w1")
    turn(other.run_once, clock, 20)
    assert cluster.drained()


@pytest.mark.parametrize("done", [True, False])
def test_a_commit_of_unknown_outcome(clock: ManualClock, monkeypatch: pytest.MonkeyPatch, done: bool) -> None:
    monkeypatch.setattr(Unsure, "done", done)
    cluster = Cluster(clock, client=unsure)
    play = Play(cluster, 16, Traffic(16, 2).chunks(200), [])
    assert play.run() == []
    assert compare(cluster, clock) == []
    assert sum(metrics.aborts._value.get() for metrics in cluster.metrics) > 5


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
    turn(first.run_once, clock, 10)
    second = cluster.worker("w1", die)
    for _ in range(8):
        first.run_once()
        if second.assigned:
            break
        second.run_once()
    publish()
    with pytest.raises(Killed):
        turn(second.run_once, clock, 10)
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
    turn(worker.run_once, clock, 30)
    assert cluster.drained()
    assert {score["labels_offset"] for _, score in cluster.contents().scores.ordered} == {0}
