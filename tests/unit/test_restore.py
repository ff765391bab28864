"""The restore table row by row, and the replay against its slow twin: labels are folded where they were folded."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest

from stream.config import StateSettings
from stream.engine.partition import BEGINNING, CommitNote
from stream.engine.restore import Log, Plan, Replay, Step, plan
from stream.errors import CheckpointAheadError, LogTruncatedError
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.kafka.port import TopicPartition
from stream.state.store import Checkpoint

DAY_MS = 86_400_000
NOW_MS = 1_700_000_000_000
TRANSACTIONS, LABELS = TopicPartition("transactions", 0), TopicPartition("labels", 0)
REFUSE = StateSettings(on_truncated_log="refuse")
CONTINUE = StateSettings(on_truncated_log="continue", horizon_days=10)
COLD = StateSettings(on_missing_checkpoint="cold", horizon_days=10)
WARM_AT = NOW_MS + 10 * DAY_MS
NOTE = CommitNote("group-w0", Checkpoint(40, 4), ((45, 5), (60, 7)), 0)

Pair = tuple[int, int]


def planned(
    checkpoint: Pair | None,
    committed: Pair | None,
    *,
    first: Pair = (0, 0),
    horizon: Pair = (0, 0),
    policy: StateSettings = REFUSE,
    note: CommitNote = NOTE,
) -> Plan:
    return plan(
        Log(TRANSACTIONS, LABELS, Checkpoint(*first)),
        None if committed is None else Checkpoint(*committed),
        note,
        None if checkpoint is None else Checkpoint(*checkpoint),
        Checkpoint(*horizon),
        policy,
        NOW_MS,
    )


# --- the restore table


def test_nothing_to_do_where_the_checkpoint_is_the_committed_offset() -> None:
    assert planned((70, 7), (70, 7)) == Plan("clean", Checkpoint(70, 7), Checkpoint(70, 7), NOTE, 0)


@pytest.mark.parametrize("checkpoint", [(50, 6), (70, 6), (50, 7), (0, 0)])
def test_what_lies_between_is_replayed(checkpoint: Pair) -> None:
    found = planned(checkpoint, (70, 7))
    assert (found.kind, found.start, found.end, found.cold_until_ms) == ("replay", checkpoint, (70, 7), 0)
    assert found.note == NOTE
    assert not found.clear


@pytest.mark.parametrize("checkpoint", [(71, 7), (70, 8), (100, 100), (71, 0)])
def test_a_checkpoint_ahead_is_refused_with_the_two_ways_out(checkpoint: Pair) -> None:
    with pytest.raises(CheckpointAheadError) as refused:
        planned(checkpoint, (70, 7))
    for words in ("partition 0", str(checkpoint), "(70, 7)", "redis.namespace", "riskstream state rebuild"):
        assert words in str(refused.value)


def test_a_checkpoint_without_committed_offset_is_ahead() -> None:
    """The group was deleted, or its offsets expired: beginning at 0 would score everything again."""
    with pytest.raises(CheckpointAheadError, match="no committed offset"):
        planned((70, 7), None, note=CommitNote())


def test_a_checkpoint_where_the_log_begins_is_no_news_to_a_group_without_offsets() -> None:
    assert planned((5, 0), None, first=(5, 0), note=CommitNote()).kind == "clean"


def test_the_first_start_ever_is_clean() -> None:
    assert planned(None, None, note=CommitNote()) == Plan("clean", Checkpoint(0, 0), Checkpoint(0, 0), CommitNote(), 0)
    assert planned(None, (0, 0), note=CommitNote()).kind == "clean"


def test_a_group_that_begins_where_the_log_was_cut_lacks_history() -> None:
    found = planned(None, None, first=(5, 2), horizon=(5, 2), policy=replace_days(REFUSE, 10), note=CommitNote())
    assert (found.start, found.end, found.cold_until_ms) == ((5, 2), (5, 2), WARM_AT)


@pytest.mark.parametrize(("most", "start", "cold"), [(77, (0, 0), False), (76, (20, 3), True), (0, (20, 3), True)])
def test_a_missing_checkpoint_is_rebuilt_from_the_logs_start_or_if_that_is_long_from_the_horizon(
    most: int, start: Pair, cold: bool
) -> None:
    policy = replace_days(REFUSE, 10).model_copy(update={"rebuild_max_events": most})
    found = planned(None, (70, 7), horizon=(20, 3), policy=policy)
    assert (found.kind, found.start, found.end) == ("rebuild", start, (70, 7))
    assert found.cold_until_ms == (WARM_AT if cold else 0)
    assert found.clear
    assert found.note == NOTE, "the note tells the labels' places from its base on"


@pytest.mark.parametrize(
    ("first", "horizon", "cold"),
    [((0, 0), (0, 0), False), ((20, 0), (20, 0), True), ((20, 0), (30, 0), True), ((0, 2), (90, 9), True)],
)
def test_a_rebuild_from_a_cut_log_lacks_what_features_remember_for_life(first: Pair, horizon: Pair, cold: bool) -> None:
    found = planned(None, (70, 7), first=first, horizon=horizon, policy=replace_days(REFUSE, 10))
    assert found.kind == "rebuild"
    assert found.start == first
    assert found.cold_until_ms == (WARM_AT if cold else 0)


def test_a_missing_checkpoint_may_start_cold() -> None:
    found = planned(None, (70, 7), policy=COLD)
    assert (found.kind, found.start, found.end, found.cold_until_ms) == ("cold", (70, 7), (70, 7), WARM_AT)
    assert found.clear


@pytest.mark.parametrize(("checkpoint", "first"), [((50, 7), (51, 0)), ((50, 7), (70, 7)), ((70, 3), (0, 5))])
def test_a_log_that_lost_part_of_the_stretch_is_refused(checkpoint: Pair, first: Pair) -> None:
    with pytest.raises(LogTruncatedError) as refused:
        planned(checkpoint, (70, 7), first=first)
    for words in ("partition 0", str(first), str(checkpoint), "on_truncated_log=continue", "riskstream state rebuild"):
        assert words in str(refused.value)


def test_or_is_replayed_from_where_it_begins_and_flagged() -> None:
    found = planned((50, 7), (70, 7), first=(60, 0), policy=CONTINUE)
    assert (found.kind, found.start, found.end, found.cold_until_ms) == ("replay", (60, 7), (70, 7), WARM_AT)


def test_a_log_cut_below_the_checkpoint_lost_nothing() -> None:
    assert planned((50, 6), (70, 7), first=(50, 6)).kind == "replay"
    assert planned((70, 7), (70, 7), first=(70, 7)).kind == "clean"


@pytest.mark.parametrize("checkpoint", [(70, 7), (60, 7), None])
@pytest.mark.parametrize("first", [(75, 9), (71, 0), (0, 8)])
def test_a_log_that_begins_behind_the_committed_offset_lost_events_that_were_never_scored(
    checkpoint: Pair | None, first: Pair
) -> None:
    with pytest.raises(LogTruncatedError) as refused:
        planned(checkpoint, (70, 7), first=first)
    for words in ("partition 0", str(first), "(70, 7)", "before it was scored", "on_truncated_log=continue"):
        assert words in str(refused.value)
    found = planned(checkpoint, (70, 7), first=first, policy=CONTINUE)
    assert found.end == (max(70, first[0]), max(7, first[1]))
    assert found.start >= first
    assert found.cold_until_ms == WARM_AT


def test_that_history_is_missing_is_remembered() -> None:
    """By the note, until the time that it names; a later reason may prolong it, never shorten it."""
    note = replace(NOTE, cold_until_ms=NOW_MS + 99 * DAY_MS)
    assert planned((70, 7), (70, 7), note=note).cold_until_ms == NOW_MS + 99 * DAY_MS
    assert planned((50, 7), (70, 7), note=note).cold_until_ms == NOW_MS + 99 * DAY_MS
    assert planned((50, 7), (70, 7), first=(60, 0), note=note, policy=CONTINUE).cold_until_ms == NOW_MS + 99 * DAY_MS
    assert planned(None, (70, 7), note=note).cold_until_ms == NOW_MS + 99 * DAY_MS


def test_a_note_that_does_not_reach_to_the_end_gives_way_to_timestamps() -> None:
    """A tool set the offsets: it leaves no note, or the old one stands beside other offsets."""
    assert planned((50, 6), (70, 7), note=CommitNote()).note == CommitNote(base=Checkpoint(70, 7))
    short = replace(NOTE, pairs=NOTE.pairs[:1])
    assert planned((50, 6), (70, 7), note=short).note == CommitNote("group-w0", Checkpoint(70, 7))
    assert planned((50, 5), (70, 5), note=short).note == short


def replace_days(policy: StateSettings, days: int) -> StateSettings:
    return policy.model_copy(update={"horizon_days": days})


# --- the replay


@dataclass
class History:
    """What a worker did with one partition: turns, commits and flushes; its log; and the order of its folding."""

    broker: MemoryBroker
    order: list[tuple[str, int, int]] = field(default_factory=list)
    """("label" or "transaction", offset, timestamp) as folded."""
    flushes: list[Checkpoint] = field(default_factory=list)
    note: CommitNote = field(default_factory=CommitNote)
    committed: Checkpoint = BEGINNING

    def order_from(self, start: Checkpoint) -> list[tuple[str, int]]:
        return [
            (kind, o) for kind, o, _ in self.order if o >= (start.labels if kind == "label" else start.transactions)
        ]


def empty(committed: Checkpoint) -> History:
    """Topics without records."""
    broker = MemoryBroker()
    for topic in ("transactions", "labels"):
        broker.create_topic(topic, partitions=1)
    return History(broker, committed=committed)


def history(seed: int, turns: int) -> History:
    """Random turns; offsets have gaps, as control records and aborted transactions leave them."""
    draw = random.Random(seed)
    made = empty(Checkpoint(0, 0))
    broker = made.broker
    done, base, pairs, now = Checkpoint(0, 0), Checkpoint(0, 0), [], 1_000

    def append(kind: str, where: TopicPartition) -> int:
        nonlocal now
        log = broker.log(where)
        log._slots.extend([None] * draw.choice((0, 0, 0, 1, 2, 5)))
        now += draw.choice((0, 0, 1, 7))
        offset = log.next_offset
        broker.append(where.topic, b"", partition=0, timestamp_ms=max(0, now - draw.choice((0, 0, 0, 9))))
        record = log._slots[-1]
        assert record is not None
        made.order.append((kind, offset, record.timestamp))
        return offset + 1

    for _ in range(turns):
        before = done
        labels, events = draw.choice((0, 0, 0, 1, 3)), draw.choice((0, 1, 2, 6))
        folded = [append("label", LABELS) for _ in range(labels)]
        read = [append("transaction", TRANSACTIONS) for _ in range(events)]
        done = Checkpoint(read[-1] if read else done.transactions, folded[-1] if folded else done.labels)
        if done == before:
            continue
        if labels:
            pairs.append((before.transactions, done.labels))
        made.committed, made.note = done, CommitNote("id", base, tuple(pairs), 0)
        if draw.random() < 0.25:
            made.flushes.append(done)
            base, pairs = done, []
    for where in (TRANSACTIONS, LABELS):
        broker.log(where)._slots.extend([None] * draw.choice((0, 1, 3)))
    return made


def replay_of(made: History, start: Checkpoint, note: CommitNote, max_records: int) -> Replay:
    client = MemoryKafka(made.broker)
    log = Log(TRANSACTIONS, LABELS, Checkpoint(0, 0))
    return Replay(log, Plan("replay", start, made.committed, note, 0), client.reader, max_records)


def flattened(steps: list[Step]) -> list[tuple[str, int]]:
    return [
        item
        for step in steps
        for item in [
            *(("label", r.offset) for r in step.labels),
            *(("transaction", r.offset) for r in step.transactions),
        ]
    ]


def run_to_the_end(replay: Replay) -> list[Step]:
    steps: list[Step] = []
    for _ in range(1_000):
        steps.extend(replay.steps())
        if replay.finished:
            return steps
    raise AssertionError("the replay does not end")


def by_timestamps(order: list[tuple[str, int, int]]) -> list[tuple[str, int]]:
    """The slow twin: each transaction is preceded by the labels in order that are not younger than it."""
    labels = [(o, stamp) for kind, o, stamp in order if kind == "label"]
    merged: list[tuple[str, int]] = []
    for _, offset, stamp in (item for item in order if item[0] == "transaction"):
        while labels and labels[0][1] <= stamp:
            merged.append(("label", labels.pop(0)[0]))
        merged.append(("transaction", offset))
    return merged + [("label", offset) for offset, _ in labels]


@pytest.mark.parametrize("seed", range(30))
def test_a_replay_folds_in_the_order_of_the_first_time(seed: int) -> None:
    """From the checkpoint that the last note knows, or a later one, whatever the portions read."""
    made = history(seed, 40)
    for start in [w for w in (Checkpoint(0, 0), *made.flushes) if w.transactions >= made.note.base.transactions
                  and w.labels >= made.note.base.labels]:  # fmt: skip
        for max_records in (1, 3, 1_000):
            steps = run_to_the_end(replay_of(made, start, made.note, max_records))
            assert flattened(steps) == made.order_from(start)
            assert steps == [] or steps[-1].done == made.committed
            _check_done(steps, start)


def _check_done(steps: list[Step], start: Checkpoint) -> None:
    """`done` is behind what was yielded and not behind what comes next: a flush may stop there."""
    for step in steps:
        assert all(r.offset < step.done.transactions for r in step.transactions)
        assert all(r.offset < step.done.labels for r in step.labels)
        assert all(r.offset >= start.transactions for r in step.transactions)
        assert all(r.offset >= start.labels for r in step.labels)
        assert step.done.transactions >= start.transactions
        assert step.done.labels >= start.labels
        start = step.done


@pytest.mark.parametrize("seed", range(30))
def test_before_the_base_labels_go_by_timestamps(seed: int) -> None:
    """Redis came back with an older W than the last note begins at: up to the base timestamps, then the pairs."""
    made = history(100 + seed, 40)
    base = made.note.base
    before = [item for item in made.order if item[1] < (base.labels if item[0] == "label" else base.transactions)]
    expected = by_timestamps(before) + made.order_from(base)
    for max_records in (1, 4, 1_000):
        steps = run_to_the_end(replay_of(made, Checkpoint(0, 0), made.note, max_records))
        assert flattened(steps) == expected
        _check_done(steps, Checkpoint(0, 0))


@pytest.mark.parametrize("seed", range(10))
def test_a_rebuild_goes_by_timestamps_alone(seed: int) -> None:
    made = history(200 + seed, 30)
    note = CommitNote(base=made.committed)
    assert flattened(run_to_the_end(replay_of(made, Checkpoint(0, 0), note, 5))) == by_timestamps(made.order)


@pytest.mark.parametrize("seed", range(20))
def test_a_replay_that_is_restarted_repeats_nothing_and_leaves_nothing_out(seed: int) -> None:
    """The store failed in the middle of a step: the caller stands somewhere within it."""
    made = history(300 + seed, 40)
    start = made.note.base
    draw = random.Random(seed)
    replay = replay_of(made, start, made.note, 4)
    found: list[tuple[str, int]] = []
    done = start
    for _ in range(2_000):
        for step in replay.steps():
            if draw.random() < 0.3 and len(step.transactions) > 1:
                folded = Step(
                    step.labels, step.transactions[:1], Checkpoint(step.transactions[0].offset + 1, step.done.labels)
                )
                found += flattened([folded])
                replay.restart(folded.done)
                done = folded.done
                break
            found += flattened([step])
            done = step.done
        if replay.finished:
            break
    assert found == made.order_from(start)
    assert done == made.committed


def test_remaining_counts_down_to_nothing() -> None:
    made = history(7, 30)
    replay = replay_of(made, Checkpoint(0, 0), CommitNote(base=made.committed), 4)
    seen = [replay.remaining]
    while not replay.finished:
        list(replay.steps())
        seen.append(replay.remaining)
    assert seen[0] == sum(made.committed)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == 0


def test_an_empty_stretch_is_finished_at_once() -> None:
    made = history(8, 10)
    replay = replay_of(made, made.committed, made.note, 4)
    assert replay.finished
    assert flattened(list(replay.steps())) == []


def test_a_stretch_of_labels_alone() -> None:
    made = empty(Checkpoint(0, 4))
    for number in range(5):
        made.broker.append("labels", b"", partition=0, timestamp_ms=number)
    replay = replay_of(made, Checkpoint(0, 1), CommitNote("id", Checkpoint(0, 1), ((0, 4),)), 2)
    assert flattened(run_to_the_end(replay)) == [("label", 1), ("label", 2), ("label", 3)]


def test_offsets_behind_the_end_are_not_touched() -> None:
    """Records that were published, but not committed, when the partition was taken over."""
    made = history(10, 20)
    for _ in range(3):
        made.broker.append("transactions", b"", partition=0)
        made.broker.append("labels", b"", partition=0)
    steps = run_to_the_end(replay_of(made, Checkpoint(0, 0), CommitNote(base=made.committed), 1_000))
    assert max(r.offset for step in steps for r in step.transactions) < made.committed.transactions
    assert max(r.offset for step in steps for r in step.labels) < made.committed.labels


def test_a_stretch_of_markers_alone_is_passed() -> None:
    made = empty(Checkpoint(7, 0))
    made.broker.log(TRANSACTIONS)._slots.extend([None] * 7)
    replay = replay_of(made, Checkpoint(2, 0), CommitNote(), 3)
    steps = run_to_the_end(replay)
    assert flattened(steps) == []
    assert steps[-1].done == (7, 0)
