"""A partition's offsets, and the note that a commit carries."""

from __future__ import annotations

import json

import pytest

from stream.config import load_settings
from stream.engine import partition as module
from stream.engine.partition import (
    METADATA_LIMIT,
    CommitNote,
    Partition,
    Phase,
    builder_name,
    cold_of_builders,
    numbers_assigned,
    transactional_id,
)
from stream.errors import TopicError
from stream.kafka.port import TopicPartition
from stream.state.store import Checkpoint

KAFKA_LIMIT_BYTES = 4_096
"""offset.metadata.max.bytes, Kafka's default."""


@pytest.mark.parametrize(
    "note",
    [
        CommitNote(),
        CommitNote("group-w0", Checkpoint(5, 2), ((5, 3), (9, 4)), 1_700_000_000_000),
        CommitNote('odd "id" with \\ and ä', Checkpoint(2**40, 2**39), tuple((2**40 + i, i) for i in range(99)), 0),
    ],
)
def test_a_note_survives_its_way_through_kafka(note: CommitNote) -> None:
    assert CommitNote.decode(note.encode()) == note


@pytest.mark.parametrize("behind", ["\0", "\0\0", "}", " {}", ',"v":2}', "\x7fELF", "\u00ff"])
def test_what_a_client_reads_behind_a_note_is_no_part_of_it(behind: str) -> None:
    note = CommitNote("group-w0", Checkpoint(5, 2), ((5, 3),), 7, 8)
    assert CommitNote.decode(note.encode() + behind) == note


@pytest.mark.parametrize(
    "text",
    [
        "",
        "set by a tool",
        "null",
        "7",
        "[]",
        '"text"',
        "{}",
        '{"v":1}',
        '{"v":1,"id":"x","base":[1],"pairs":[],"cold":0}',
        '{"v":1,"id":"x","base":[1,2,3],"pairs":[],"cold":0}',
        '{"v":1,"id":"x","base":[1,"two"],"pairs":[],"cold":0}',
        '{"v":1,"id":"x","base":[1,2],"pairs":[[1]],"cold":0}',
        '{"v":1,"id":"x","base":[1,2],"pairs":[1,2],"cold":0}',
        '{"v":1,"id":"x","base":[1,2],"pairs":null,"cold":0}',
        '{"v":1,"id":"x","base":[1,2],"pairs":[],"cold":Infinity}',
        '{"v":2,"id":"x","base":[1,2],"pairs":[],"cold":0}',
        '{"v":1,"id":"x","base":[1,2],"pairs":[],"cold":0',
    ],
)
def test_a_damaged_or_foreign_note_is_an_empty_one(text: str) -> None:
    assert CommitNote.decode(text) == CommitNote()


def test_cut_at_any_place_it_is_never_half_a_note() -> None:
    text = CommitNote("group-w0", Checkpoint(5, 2), ((5, 3), (19, 14)), 7).encode()
    assert all(CommitNote.decode(text[:place]) == CommitNote() for place in range(len(text)))


def test_the_limit_leaves_room_for_a_turn_and_for_the_longest_names() -> None:
    """A flush is due once the pairs pass the limit: the turn that passed it must still fit."""
    longest = "g" * 249 + "-" + "w" * 80
    partition = Partition(0, base=Checkpoint(2**50, 2**50), cold_until_ms=2**45)
    while len(partition.note("")) <= METADATA_LIMIT:
        partition.pairs.append((2**50, 2**50))
    partition.pairs.append((2**50, 2**50))
    assert len(partition.note(longest).encode()) < KAFKA_LIMIT_BYTES


def test_a_commit_says_where_both_inputs_stand() -> None:
    partition = Partition(3, Phase.RUNNING, Checkpoint(9, 4), None, [(5, 3), (7, 4)], Checkpoint(5, 2), 77)
    transactions, labels = partition.committed("group-w0")
    assert (transactions.offset, labels.offset) == (9, 4)
    assert CommitNote.decode(transactions.metadata) == CommitNote("group-w0", Checkpoint(5, 2), ((5, 3), (7, 4)), 77)
    assert labels.metadata == ""


def test_after_a_flush_the_note_begins_anew() -> None:
    partition = Partition(0, Phase.RUNNING, Checkpoint(9, 4), None, [(5, 3)], Checkpoint(5, 2), 77)
    partition.flushed()
    assert (partition.base, partition.pairs) == ((9, 4), [])
    assert partition.cold_until_ms == 77, "a flush does not bring history back"


def test_a_degraded_partition_cuts_its_note_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot flush. What the pairs told goes by timestamps from then on."""
    monkeypatch.setattr(module, "METADATA_LIMIT", 120)
    partition = Partition(0, Phase.RUNNING, degraded=True)
    for turn in range(1, 60):
        before, partition.done = partition.done, Checkpoint(10 * turn, turn)
        partition.note_labels(before)
        assert len(partition.note("")) <= 120
        told = [partition.base.labels, *(labels for _, labels in partition.pairs)]
        assert told[-1] == turn, "the note reaches to the end"
        assert told == sorted(told)
    assert partition.base > Checkpoint(0, 0)


def test_one_that_can_flush_notes_every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "METADATA_LIMIT", 120)
    partition = Partition(0, Phase.RUNNING)
    for turn in range(1, 60):
        before, partition.done = partition.done, Checkpoint(10 * turn, turn)
        partition.note_labels(before)
    assert partition.pairs == [(10 * (turn - 1), turn) for turn in range(1, 60)]


def test_the_transactional_id_is_that_of_the_worker_slot() -> None:
    settings = load_settings(None, {}, {"kafka.group": "payments", "kafka.worker_id": "w-7"}).settings
    assert transactional_id(settings) == "payments-w-7"


def test_the_encoding_is_plain_json() -> None:
    """An operator reads it with Kafka's own tools."""
    content = json.loads(CommitNote("g-w", Checkpoint(5, 2), ((5, 3),), 9, 4).encode())
    assert content == {"v": 1, "id": "g-w", "base": [5, 2], "pairs": [[5, 3]], "cold": 9, "of": 4}


def test_an_assignment_is_taken_only_whole_and_within_the_partitions_that_were_there() -> None:
    topics = load_settings(None, {}, {}).settings.topics
    both = [TopicPartition(topic, n) for topic in (topics.transactions, topics.labels) for n in (1, 3)]
    assert numbers_assigned(both, topics, 4) == {1, 3}
    assert numbers_assigned([], topics, 4) == set()
    with pytest.raises(TopicError, match="not assigned alike"):
        numbers_assigned(both[:-1], topics, 4)
    with pytest.raises(TopicError, match="4 partitions, and the group's state was made with 3"):
        numbers_assigned(both, topics, 3)


def test_a_builders_name_carries_the_mark_of_a_short_history() -> None:
    settings = load_settings(None, {}, {"kafka.group": "a:b"}).settings
    names = [builder_name(settings), builder_name(settings, 1_800_000_000_123), "a:b-worker-0"]
    assert cold_of_builders(names) == 1_800_000_000_123
    assert cold_of_builders(names[::2]) == 0
    assert cold_of_builders(["state-build:x:soon"]) == 0
    assert not any(name.startswith("a:b-") for name in names[:2])
