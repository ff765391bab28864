"""One defect at a time is planted into the engine, and the suite must turn red: else its green means nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stream.clock import ManualClock
from stream.engine import flush, restoring
from stream.engine.inputs import Share
from stream.engine.outputs import Judge
from stream.engine.partition import CommitNote, Partition
from stream.engine.restore import Plan
from stream.engine.turn import Message, Turn
from stream.engine.worker import Worker
from stream.errors import TurnAborted
from stream.features import assemble
from stream.kafka.memory.client import MemoryConsumer, MemoryProducer
from stream.kafka.port import CommittedOffset, TopicPartition
from stream.state import memory
from stream.state.store import Head
from tests.crash.cluster import TOPICS, Cluster, Fault, Play
from tests.crash.traffic import Traffic
from tests.crash.undisturbed import compare

Plant = Callable[[pytest.MonkeyPatch], None]


def _spoil_messages(patch: pytest.MonkeyPatch, topic: str, spoil: Callable[[list[Message]], list[Message]]) -> None:
    """Applies `spoil` to the third non-empty batch of messages for the topic."""
    make, seen = Turn._messages, [0]

    def spoiled(self: Turn, to: str, *arguments: Any) -> list[Message]:
        messages = make(self, to, *arguments)
        if to == topic and messages:
            seen[0] += 1
            return spoil(messages) if seen[0] == 3 else messages
        return messages

    patch.setattr(Turn, "_messages", spoiled)


def dropped_score(patch: pytest.MonkeyPatch) -> None:
    _spoil_messages(patch, TOPICS.scores, lambda messages: messages[1:])


def doubled_score(patch: pytest.MonkeyPatch) -> None:
    _spoil_messages(patch, TOPICS.scores, lambda messages: [*messages, messages[0]])


def dropped_alert(patch: pytest.MonkeyPatch) -> None:
    _spoil_messages(patch, TOPICS.alerts, lambda messages: messages[1:])


def dropped_dead_letter(patch: pytest.MonkeyPatch) -> None:
    _spoil_messages(patch, TOPICS.dead_letters, lambda messages: messages[1:])


def spoiled_dead_letter(patch: pytest.MonkeyPatch) -> None:
    _spoil_messages(
        patch, TOPICS.dead_letters,
        lambda messages: [m._replace(value=m.value.replace(b'"value":"', b'"value":"AAAA')) for m in messages],
    )  # fmt: skip


def reordered_scores(patch: pytest.MonkeyPatch) -> None:
    make = Turn._messages
    patch.setattr(Turn, "_messages", lambda self, *arguments: make(self, *arguments)[::-1])


def changed_score(patch: pytest.MonkeyPatch) -> None:
    make, seen = Judge.score_records, [0]

    def changed(self: Judge, *arguments: Any) -> list[dict[str, Any]]:
        records = make(self, *arguments)
        seen[0] += 1
        if seen[0] == 5:
            records[0]["probability"] += 3e-6
        return records

    patch.setattr(Judge, "score_records", changed)


def duplicates_scored(patch: pytest.MonkeyPatch) -> None:
    find = assemble.find_duplicates

    def blind(*arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        duplicate, included = find(*arguments)
        return np.zeros_like(duplicate), included

    patch.setattr(assemble, "find_duplicates", blind)


def rows_before_commit(patch: pytest.MonkeyPatch) -> None:
    commit = Worker._commit

    def early(self: Worker, shares: list[Share], result: Any) -> None:
        keeper = self._keeper
        for pool in keeper._state.pools():
            heads = {share.partition.number: share.partition.head for share in shares}
            keeper._write([(pool.kind, pool.dirty_slots(list(heads)))], heads)
        commit(self, shares, result)

    patch.setattr(Worker, "_commit", early)


def offsets_outside_the_transaction(patch: pytest.MonkeyPatch) -> None:
    commit, send = Worker._commit, MemoryProducer.send_offsets
    of_a_turn: list[Worker] = []

    def remembered(self: Worker, *arguments: Any) -> None:
        of_a_turn.append(self)
        try:
            commit(self, *arguments)
        finally:
            of_a_turn.clear()

    def at_once(self: MemoryProducer, offsets: dict[TopicPartition, CommittedOffset], group: Any) -> None:
        send(self, offsets, group)
        if of_a_turn:
            self._broker.group(group.group).offsets.update(offsets)

    patch.setattr(Worker, "_commit", remembered)
    patch.setattr(MemoryProducer, "send_offsets", at_once)


def any_row_of_anybody_replaces_any(patch: pytest.MonkeyPatch) -> None:
    """Neither its offsets nor its owner are asked: each alone would keep a zombie's rows out of a running partition."""
    write = memory.MemoryStore.write_rows

    def of_anybody(self: memory.MemoryStore, rows: Mapping[bytes, bytes], heads: Mapping[int, Head]) -> int:
        return write(self, rows, {number: self.load_head(number) or head for number, head in heads.items()})

    patch.setattr(memory, "replaces", lambda new, old: True)
    patch.setattr(memory.MemoryStore, "write_rows", of_anybody)


def restore_skipped(patch: pytest.MonkeyPatch) -> None:
    plan = restoring.plan

    def nothing_to_do(*arguments: Any) -> Plan:
        planned = plan(*arguments)
        return replace(planned, kind="clean", start=planned.end)

    patch.setattr(restoring, "plan", nothing_to_do)


def labels_replayed_anywhere(patch: pytest.MonkeyPatch) -> None:
    """The note's pairs say that all labels were folded first."""
    decode = CommitNote.decode

    def wrong(text: str) -> CommitNote:
        note = decode(text)
        return replace(note, pairs=tuple((0, labels) for _, labels in note.pairs))

    patch.setattr(restoring.CommitNote, "decode", wrong)


def checkpoint_before_rows(patch: pytest.MonkeyPatch) -> None:
    write = flush.RowKeeper.flush

    def w_first(self: flush.RowKeeper, partitions: Collection[Partition]) -> int:
        for p in partitions:
            if p.checkpoint != p.done:
                assert p.head is not None
                p.head = self._store.write_checkpoints({p.number: p.done}, {p.number: p.head})[p.number]
        return write(self, partitions)

    patch.setattr(flush.RowKeeper, "flush", w_first)


def reading_goes_on_where_it_stood(patch: pytest.MonkeyPatch) -> None:
    """No seek to the committed offset after a transaction that failed, as the fifth does here."""
    commit, seen = MemoryProducer.commit, [0]

    def fails_once(self: MemoryProducer) -> None:
        seen[0] += 1
        if seen[0] == 5:
            raise TurnAborted("the broker said no")
        commit(self)

    patch.setattr(MemoryProducer, "commit", fails_once)
    patch.setattr(MemoryConsumer, "seek", lambda self, partition, offset: None)


def kill(*points: str) -> list[Fault]:
    return [Fault(point, hit, "kill") for point in points for hit in (2, 5, 9)]


QUIET: list[Fault] = []
HELD = [Fault("flush:after_chunk", hit, "hold") for hit in range(1, 40, 2)]


@pytest.mark.parametrize(
    ("plant", "faults", "red"),
    [
        (dropped_score, QUIET, "has 0 scores"),
        (doubled_score, QUIET, "has 2 scores"),
        (dropped_alert, QUIET, "0 alerts of 1 suspicious"),
        (dropped_dead_letter, QUIET, "0 dead letters"),
        (spoiled_dead_letter, QUIET, "does not hold the message's bytes"),
        (reordered_scores, QUIET, "out of order"),
        (changed_score, QUIET, "probability"),
        (duplicates_scored, QUIET, "a duplicate has 1 scores"),
        (rows_before_commit, QUIET, "which is not committed"),
        (offsets_outside_the_transaction, kill("turn:inside_commit"), "has 0 scores"),
        (any_row_of_anybody_replaces_any, HELD, "row"),
        (restore_skipped, kill("turn:after_commit"), "features"),
        (labels_replayed_anywhere, kill("turn:after_commit"), "row"),
        (checkpoint_before_rows, kill("flush:after_accounts"), "row"),
        (reading_goes_on_where_it_stood, QUIET, "has 0 scores"),
    ],
)
def test_a_planted_defect_is_found(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, plant: Plant, faults: Sequence[Fault], red: str
) -> None:
    found = complaints(clock, monkeypatch, plant, faults)
    assert [line for line in found if red in line], found


@pytest.mark.parametrize(
    "faults", [QUIET, HELD, kill("flush:after_chunk", "flush:after_entities", "turn:after_commit")]
)
def test_nothing_is_found_where_nothing_is_planted(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, faults: Sequence[Fault]
) -> None:
    assert complaints(clock, monkeypatch, lambda patch: None, faults) == []


def complaints(clock: ManualClock, monkeypatch: pytest.MonkeyPatch, plant: Plant, faults: Sequence[Fault]) -> list[str]:
    """All that the suite has to say about one and the same run with a defect in it."""
    monkeypatch.setattr(flush, "_WRITE_ROWS", 3)
    given = {"state.flush_interval_ms": 400}
    cluster = Cluster(clock, given=given)
    play = Play(cluster, 3, Traffic(3, 2).chunks(150), faults)
    with monkeypatch.context() as patch:
        plant(patch)
        found = play.run()
    return found + compare(cluster, clock, given=given)
