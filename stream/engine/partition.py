"""One input partition as a worker sees it: its phase, its offsets, and what a commit says of it."""

from __future__ import annotations

import enum
import json
from collections import deque
from dataclasses import dataclass, field

from stream.config import Settings
from stream.kafka.port import CommittedOffset, Record
from stream.state.store import Checkpoint, Head

BEGINNING = Checkpoint(0, 0)

METADATA_LIMIT = 3_500
"""Kafka takes 4,096 bytes of offset metadata by default; when the pairs would pass this, flush first."""
_NOTE_VERSION = 1


def transactional_id(settings: Settings) -> str:
    """Stable per worker slot, so that a restarted worker fences its dead self."""
    return f"{settings.kafka.group}-{settings.kafka.worker_id}"


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
    the labels below l had been folded. `cold_until_ms` marks a state that lacks history until then.
    """

    transactional_id: str = ""
    base: Checkpoint = BEGINNING
    pairs: tuple[tuple[int, int], ...] = ()
    cold_until_ms: int = 0

    def encode(self) -> str:
        content = {
            "v": _NOTE_VERSION,
            "id": self.transactional_id,
            "base": self.base,
            "pairs": self.pairs,
            "cold": self.cold_until_ms,
        }
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> CommitNote:
        """An empty or foreign string (offsets set by a tool) is an empty note: labels then go by timestamps."""
        try:
            content = json.loads(text)
            if content["v"] != _NOTE_VERSION:
                return cls()
            pairs = tuple((int(t), int(label)) for t, label in content["pairs"])
            return cls(str(content["id"]), Checkpoint(*map(int, content["base"])), pairs, int(content["cold"]))
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
    waiting_labels: deque[Record] = field(default_factory=deque)
    waiting_records: deque[Record] = field(default_factory=deque)

    @property
    def checkpoint(self) -> Checkpoint | None:
        """W in the store."""
        return self.head.checkpoint if self.head is not None else None

    def note(self, transactional_id: str) -> str:
        return CommitNote(transactional_id, self.base, tuple(self.pairs), self.cold_until_ms).encode()

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
