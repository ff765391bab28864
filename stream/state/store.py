"""What the engine asks of the page store. Two implementations pass one contract suite:
`redis.py` and `memory.py` (the reference).

A row's bytes begin with its two offsets, little-endian int64: transactions, labels (each the
first offset of that topic *not* included). The store compares these and reads nothing else.

A partition's head record says who owns it and how far its rows go. A worker that begins to restore
claims the partition, which raises the epoch in the head; from then on every call of a former owner is refused,
because each names the head that the caller knows and the store compares it inside the same atomic step.

Vendor exceptions never cross: UnavailableError (away, timed out, full), NotAuthorisedError,
StateLostError (the head there is not the one that the caller knows).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

ROW_HEADER_BYTES = 16
FORMER_OWNERS = 16
"""How many owners a head remembers that claimed the partition since W was last written."""


class Checkpoint(NamedTuple):
    """W of one partition: all rows in the store include every event and label below these offsets."""

    transactions: int
    labels: int


class Head(NamedTuple):
    """The record of one partition. `epoch` rises with every claim, and a lost one never comes back."""

    epoch: int
    owners: tuple[str, ...]
    """The owner, then those before it whose transactions may still be open."""
    checkpoint: Checkpoint | None

    def written(self, checkpoint: Checkpoint) -> Head:
        """The head once its owner has written W: it has restored, so no former transaction is open."""
        return Head(self.epoch, self.owners[:1], checkpoint)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check of the surroundings found: what `doctor` prints."""

    subject: str
    level: str  # "ok", "warning", "error"
    message: str
    remedy: str = ""


class Memory(NamedTuple):
    """What a store holds, and how much it may."""

    used_bytes: int
    limit_bytes: int
    """maxmemory; without one, the machine's memory."""


EntityName = tuple[str, str]
"""Kind and identity of an entity: ("merchant", "m-17")."""


class StateStore(Protocol):
    """All calls block and are made from the engine's thread."""

    def row_key(self, partition: int, kind: str, identity: str) -> bytes:
        """The key name of a row: carries the partition's hash tag and a keyed hash of the identity.

        `kind` is "account" or an entity's name ("merchant"). Pure and stable across processes.
        """
        ...

    def claim(self, partition: int, owner: str, now_ms: int) -> Head:
        """Makes `owner` the owner of the partition: whoever owned it can write nothing any more. One atomic step.

        The new epoch is above the one found, and not below `now_ms`: so it is new even where a store lost the
        old one. W stays as it is. Claiming again (after a lost answer) forgets no former owner.
        """
        ...

    def load_rows(self, keys: Sequence[bytes], heads: Mapping[int, Head]) -> list[bytes | None]:
        """The rows, None where absent: one round trip.

        `heads` is what the caller knows of the partitions concerned; when the store holds something else for
        one of them, it lost data or has another owner: StateLostError, nothing is returned.
        """
        ...

    def write_rows(self, rows: Mapping[bytes, bytes], heads: Mapping[int, Head]) -> int:
        """Replaces each row that is absent or has lower offsets; returns how many were replaced.

        A row replaces another only if neither of its two offsets is lower and one is greater.
        Rows of one call may be of several partitions, each with its head in `heads`: where the store holds
        another head, no further row of that partition is written, and StateLostError is raised.
        Atomic per some hundreds of rows, not per call.
        """
        ...

    def load_head(self, partition: int) -> Head | None: ...

    def write_checkpoints(self, checkpoints: Mapping[int, Checkpoint], heads: Mapping[int, Head]) -> dict[int, Head]:
        """Writes W of each partition whose head the store still holds: one round trip; returns the new heads.

        StateLostError when the head of one is another; the others' W may be written. Of each partition one atomic
        step. A store that holds the new head already is a success: the client may ask again after a lost answer.
        """
        ...

    def publish_copies(self, copies: Mapping[int, Mapping[EntityName, bytes]], heads: Mapping[int, Head]) -> None:
        """Shows entity partials (row bytes by entity, by partition) to the other partitions.

        Stored in one hash per entity, field = partition; greater offsets only. StateLostError when one of the
        partitions has been claimed since its head in `heads`: nothing more of that one is shown.
        """
        ...

    def read_copies(self, entities: Sequence[EntityName], own: Sequence[int]) -> list[dict[int, bytes]]:
        """The partials of each entity by partition number, its own partition's left out: one round trip."""
        ...

    def clear(self, partition: int, head: Head) -> int:
        """Deletes W and the rows of a partition (rebuild); returns how many went. The head stays, without W.

        StateLostError when the partition is claimed by somebody else, before or meanwhile.
        """
        ...

    def memory(self) -> Memory:
        """How full the store is: one round trip."""
        ...

    def check(self) -> list[Finding]:
        """Reachable, noeviction, persistence, memory. Never raises for what it can report."""
        ...

    def close(self) -> None: ...
