"""The places of old labels, found in the score records: a rebuild then folds in the order of the first time."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from stream.engine.label_places import LabelPlaces
from stream.engine.partition import CommitNote
from stream.engine.restore import Log, Plan
from stream.kafka.memory import MemoryKafka
from stream.kafka.port import TopicPartition
from stream.state.store import Checkpoint
from tests.unit.test_restore import LABELS, TRANSACTIONS, History, flattened, history, replay_of, run_to_the_end

SCORES = TopicPartition("risk-scores", 0)
BEGINNING = Checkpoint(0, 0)


def with_scores(made: History, *, skip: int = 0, noise: bool = False) -> History:
    """Publishes what the first run would have: for each transaction, the labels that were folded before it."""
    made.broker.create_topic(SCORES.topic, partitions=1)
    known, events = 0, 0
    for kind, offset, *_ in made.order:
        if kind == "label":
            known = offset + 1
            continue
        events += 1
        if events <= skip:
            continue
        places = [(TRANSACTIONS.topic, 0, offset, known)]
        if noise:
            places.insert(0, (TRANSACTIONS.topic, 0, offset, 0))  # in an earlier life nothing was known
            places += [(TRANSACTIONS.topic, 1, offset, 10**6), ("other", 0, offset, 10**6)]
        for topic, partition, where, labels in places:
            origin = {"topic": topic, "partition": partition, "offset": where}
            score = {"origin": origin, "labels_offset": labels, "passthrough": {"labels_offset": 7}}
            made.broker.append(SCORES.topic, json.dumps(score).encode(), partition=0, timestamp_ms=10**9)
    return made


def found(made: History, note: CommitNote, start: Checkpoint = BEGINNING, max_records: int = 7) -> Plan:
    log = Log(TRANSACTIONS, LABELS, BEGINNING)
    plan = Plan("rebuild", start, made.committed, note, 0)
    places = LabelPlaces(log, plan, note, SCORES, MemoryKafka(made.broker).reader(), max_records)
    for _ in range(1_000):
        if places.step():
            return places.plan()
    raise AssertionError("the search does not end")


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_a_rebuild_folds_in_the_order_of_the_first_time(seed: int, noise: bool) -> None:
    made = with_scores(history(300 + seed, 40), noise=noise)
    plan = found(made, made.note)
    assert flattened(run_to_the_end(replay_of(made, BEGINNING, plan.note, 5))) == made.order_from(BEGINNING)


def test_the_test_can_fail() -> None:
    """Without the places, timestamps put some labels elsewhere."""
    elsewhere = 0
    for seed in range(20):
        made = history(300 + seed, 40)
        order = flattened(run_to_the_end(replay_of(made, BEGINNING, made.note, 5)))
        elsewhere += order != made.order_from(BEGINNING)
    assert elsewhere > 5


def test_scores_that_retention_has_dropped_leave_the_older_labels_to_timestamps() -> None:
    made = with_scores(history(7, 60), skip=20)
    plan = found(made, made.note)
    first = [offset for kind, offset, *_ in made.order if kind == "transaction"][20]
    assert plan.note.base.transactions == first
    assert all(event > first for event, _ in plan.note.pairs)


def test_no_scores_leave_the_plan_as_it_was() -> None:
    made = history(8, 20)
    made.broker.create_topic(SCORES.topic, partitions=1)
    assert found(made, made.note).note == made.note


def test_a_note_of_a_tool_knows_nothing_and_the_scores_tell_all() -> None:
    made = with_scores(history(9, 40))
    note = replace(CommitNote(), base=made.committed)
    plan = found(made, note)
    assert flattened(run_to_the_end(replay_of(made, BEGINNING, plan.note, 5))) == made.order_from(BEGINNING)
