"""The store loses data or comes back older: rows are rebuilt from the log, and the scores never show it, or say so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stream.clock import ManualClock
from stream.kafka.port import TopicPartition
from stream.state.memory import MemoryServer
from tests.checker.checks import differences
from tests.crash.cluster import TOPICS, Cluster, Fault, Play
from tests.crash.scenes import Unsure, flags, play_in_turns, turn, unambiguous, unsure
from tests.crash.traffic import DAY_MS, Chunk, Traffic
from tests.crash.undisturbed import compare, run_undisturbed


@pytest.mark.parametrize("lost", ["everything", "checkpoints", "a while", "a flush"])
def test_a_store_that_lost_data_is_rebuilt(clock: ManualClock, lost: str) -> None:
    """FLUSHALL; W alone gone; an older snapshot, hours or one flush old. The scores never show it."""
    cluster = Cluster(clock)
    kept: list[MemoryServer] = []
    server = cluster.server
    losses: dict[str, Callable[[], object]] = {
        "everything": server.flush_all,
        "checkpoints": server.heads.clear,
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


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lost", ["everything", "a while"])
def test_labels_are_folded_where_they_were_the_first_time(clock: ManualClock, lost: str, seed: int) -> None:
    """Not where their timestamps would put them: the scores of the first time say where. Workers die meanwhile."""
    cluster = Cluster(clock, given={"state.flush_interval_ms": 300})
    kept: list[MemoryServer] = []
    lose = cluster.server.flush_all if lost == "everything" else lambda: cluster.server.restore(kept[0])
    happenings = {40: lambda play: kept.append(cluster.server.snapshot()), 110: lambda play: lose()}
    faults = [Fault("turn:after_commit", 25, "kill"), Fault("restore:after_step", 4, "kill")]
    play = Play(cluster, 30 + seed, Traffic(30 + seed, 2).chunks(500, labels=0.3), faults, happenings=happenings)
    assert play.run() == []
    assert compare(cluster, clock, given={"state.flush_interval_ms": 300}) == []


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


@pytest.mark.parametrize("most", [5_000_000, 0])
def test_a_rebuild_keeps_what_features_remember_for_life_or_says_so(clock: ManualClock, most: int) -> None:
    """The log goes back further than the horizon: past events and norms from before it count too."""
    given = {"state.horizon_days": 1, "state.rebuild_max_events": most}
    cluster = Cluster(clock, given=given)
    server = cluster.server
    play_in_turns(
        cluster, unambiguous(Traffic(27, 2), 16), {12: lambda: clock.advance_ms(2 * DAY_MS), 24: server.flush_all}
    )
    assert cluster.metrics[0].restores.labels("rebuild")._value.get() == 2
    if most:
        assert compare(cluster, clock, given=given) == []
        assert "cold" not in flags(cluster)
        return
    contents = cluster.contents()
    expected = run_undisturbed(clock, contents, given).contents()
    differ = differences(contents.scores, expected.scores)
    assert differ, "this scene shows something"
    cold = {origin for origin, score in contents.scores.ordered if "cold" in score["flags"]}
    assert len(cold) > 20
    assert all(str(origin) in {str(one) for one in cold} for origin in _origins(differ))


def _origins(lines: list[str]) -> set[str]:
    return {line[line.index("(") : line.index(")") + 1] for line in lines}


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
        turn(worker.run_once, clock, 10)
        worker.finish()
    cluster.publish(Chunk((traffic.event(),)))
    worker = cluster.worker("w3")
    turn(worker.run_once, clock, 10)
    assert "cold" in cluster.contents().scores.ordered[-1][1]["flags"]
    assert cluster.drained()


@pytest.mark.parametrize("done", [True, False])
def test_that_history_is_missing_is_noted_even_if_kafka_stutters(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    """The commit that notes it has no answer: the restore begins again, nothing else is done in that turn."""
    monkeypatch.setattr(Unsure, "done", done)
    monkeypatch.setattr(Unsure, "every", 3)
    given = {"state.on_missing_checkpoint": "cold"}
    cluster = Cluster(clock, client=unsure, given=given)
    happenings = {step: (lambda play: play.cluster.server.flush_all()) for step in (20, 40, 60)}
    play = Play(cluster, 21, Traffic(21, 2).chunks(200), [], happenings=happenings)
    assert play.run() == []
    assert flags(cluster)["cold"] > 50
