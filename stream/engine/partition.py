"""One input partition as a worker sees it: its phase, its offsets, and what a commit says of it."""

from __future__ import annotations

import enum
import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from stream.config import Settings, TopicSettings
from stream.errors import TopicError
from stream.kafka.port import Admin, CommittedOffset, Record, TopicPartition
from stream.state.store import Checkpoint, Head

BEGINNING = Checkpoint(0, 0)

METADATA_LIMIT = 3_500
"""Kafka takes 4,096 bytes of offset metadata by default; when the pairs would pass this, flush first."""
_NOTE_VERSION = 1
_JSON = json.JSONDecoder()


def transactional_id(settings: Settings) -> str:
    """Stable per worker slot, so that a restarted worker fences its dead self."""
    return f"{settings.kafka.group}-{settings.kafka.worker_id}"


_BUILDER = "state-build:"


def builder_name(settings: Settings, cold_until_ms: int = 0) -> str:
    """The owner of a state that is built for workers to come (building.py). It carries their mark `cold`.

    No transactional id: a builder has no transaction that could be open.
    """
    return f"{_BUILDER}{settings.kafka.group}:{cold_until_ms}"


def cold_of_builders(owners: Sequence[str]) -> int:
    """Until when scores from a state are cold, as a builder among its former owners found; 0 if none did."""
    marks = [name.rpartition(":")[2] for name in owners if name.startswith(_BUILDER)]
    return max((int(mark) for mark in marks if mark.isdecimal()), default=0)


class Phase(enum.Enum):
    """The drawing is in worker.py.

    ASSIGNED: nothing is known of it yet. PARKED: revoked after a flush, rows kept in memory in case the
    next assignment gives it back. RETURNED: given back, to be checked whether nobody else touched it.
    """

    ASSIGNED = "assigned"
    RESTORING = "restoring"
    RUNNING = "running"
    PARKED = "parked"
    RETURNED = "returned"


@dataclass(frozen=True, slots=True)
class CommitNote:
    """The metadata string of a committed transactions offset.

    `base` is the checkpoint from which `pairs` tell the labels' places: before the transaction of offset t,
    the labels below l had been folded. `cold_until_ms` marks a state that lacks history until then. `partitions`
    is how many the inputs had (0: not noted): with another number, accounts lie elsewhere than their rows.
    """

    transactional_id: str = ""
    base: Checkpoint = BEGINNING
    pairs: tuple[tuple[int, int], ...] = ()
    cold_until_ms: int = 0
    partitions: int = 0

    def encode(self) -> str:
        content = {
            "v": _NOTE_VERSION,
            "id": self.transactional_id,
            "base": self.base,
            "pairs": self.pairs,
            "cold": self.cold_until_ms,
            "of": self.partitions,
        }
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> CommitNote:
        """An empty or foreign string (offsets set by a tool) is an empty note: labels then go by timestamps.

        What follows the note is left aside: a client may read past the end (stream/kafka/confluent).
        """
        try:
            content, _ = _JSON.raw_decode(text)
            if content["v"] != _NOTE_VERSION:
                return cls()
            pairs = tuple((int(t), int(label)) for t, label in content["pairs"])
            base, cold = Checkpoint(*map(int, content["base"])), int(content["cold"])
            return cls(str(content["id"]), base, pairs, cold, int(content.get("of", 0)))
        except (ValueError, KeyError, TypeError, OverflowError):
            return cls()


@dataclass(slots=True)
class Partition:
    """Offsets are 'first not yet done'. `done` is committed in Kafka; `head` is what the store holds for its owner."""

    number: int
    phase: Phase = Phase.ASSIGNED
    done: Checkpoint = BEGINNING
    head: Head | None = None
    """None: not claimed yet, or degraded."""
    pairs: list[tuple[int, int]] = field(default_factory=list)
    base: Checkpoint = BEGINNING
    cold_until_ms: int = 0
    degraded: bool = False
    """Rows without history were used while the store was away; nothing is flushed, it restores afterwards."""
    of: int = 0
    """How many partitions the inputs have."""
    waiting_labels: deque[Record] = field(default_factory=deque)
    waiting_records: deque[Record] = field(default_factory=deque)

    @property
    def checkpoint(self) -> Checkpoint | None:
        """W in the store."""
        return self.head.checkpoint if self.head is not None else None

    def note(self, transactional_id: str) -> str:
        return CommitNote(transactional_id, self.base, tuple(self.pairs), self.cold_until_ms, self.of).encode()

    def note_labels(self, before: Checkpoint) -> None:
        """Labels were folded between `before` and `done`: notes where.

        A degraded partition cannot flush when the note grows long: its replay then goes by timestamps.
        """
        self.pairs.append((before.transactions, self.done.labels))
        if self.degraded and len(self.note("")) > METADATA_LIMIT:
            self.base = self.done
            self.pairs.clear()

    def committed(self, transactional_id: str) -> tuple[CommittedOffset, CommittedOffset]:
        """What the next commit says: of the transactions, of the labels."""
        return CommittedOffset(self.done.transactions, self.note(transactional_id)), CommittedOffset(
            self.done.labels, ""
        )

    def flushed(self) -> None:
        """All rows are in the store up to `done`, and so is W."""
        self.base = self.done
        self.pairs.clear()


def numbers_assigned(partitions: Iterable[TopicPartition], topics: TopicSettings, count: int) -> set[int]:
    """The numbers of an assignment. TopicError: the inputs are not assigned alike, or have more than `count`."""
    partitions = list(partitions)
    mine = {tp.partition for tp in partitions if tp.topic == topics.transactions}
    if mine != {tp.partition for tp in partitions if tp.topic == topics.labels}:
        raise TopicError(
            f"{topics.transactions} and {topics.labels} are not assigned alike: give both topics the same "
            f"number of partitions, and let every member of the group use the range assignor"
        )
    if max(mine, default=-1) >= count:
        raise TopicError(partitions_added(topics.transactions, count, max(mine) + 1))
    return mine


def partitions_added(topic: str, before: int, now: int) -> str:
    """What to tell an operator who gave a running group's inputs more partitions."""
    return (
        f"{topic} has {now} partitions, and the group's state was made with {before}: keys have moved, so accounts "
        f"lie in other partitions than their history, and scores would be wrong in silence. Kafka cannot take "
        f"partitions away: stop the producers, make new topics with as many as are needed, and bring the history "
        f"over (docs/operations/partitions.md)"
    )


def check_count(admin: Admin, settings: Settings, count: int) -> None:
    """TopicError when the group committed at another number of partitions. Blocks for one request."""
    topic = settings.topics.transactions
    asked = [TopicPartition(topic, number) for number in range(count)]
    for committed in admin.last_committed(settings.kafka.group, asked).values():
        before = CommitNote.decode(committed.metadata).partitions
        if before not in (0, count):
            raise TopicError(partitions_added(topic, before, count))
