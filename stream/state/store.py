"""What the engine asks of the page store. Two implementations pass one contract suite:
`redis.py` and `memory.py` (the reference).

A row's bytes begin with its two offsets, little-endian int64: transactions, labels (each the
first offset of that topic *not* included). The store compares these and reads nothing else.

Vendor exceptions never cross: UnavailableError (away, timed out, full), NotAuthorisedError,
StateLostError (the checkpoint there is not the one that the caller knows).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

ROW_HEADER_BYTES = 16


class Checkpoint(NamedTuple):
    """W of one partition: all rows in the store include every event and label below these offsets."""

    transactions: int
    labels: int


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


class StateStore(Protocol):
    """All calls block and are made from the engine's thread."""

    def row_key(self, partition: int, kind: str, identity: str) -> bytes:
        """The key name of a row: carries the partition's hash tag and a keyed hash of the identity.

        `kind` is "account" or an entity's name ("merchant"). Pure and stable across processes.
        """
        ...

    def load_rows(self, keys: Sequence[bytes], checkpoints: Mapping[int, Checkpoint | None]) -> list[bytes | None]:
        """The rows, None where absent: one round trip.

        `checkpoints` is what the caller knows for the partitions concerned; when the store holds
        something else for one of them, it lost data: StateLostError, nothing is returned.
        """
        ...

    def write_rows(self, rows: Mapping[bytes, bytes]) -> int:
        """Replaces each row that is absent or has lower offsets; returns how many were replaced.

        A row replaces another only if neither of its two offsets is lower and one is greater.
        Atomic per row, not per call. Rows of one call may be of several partitions.
        """
        ...

    def load_checkpoint(self, partition: int) -> Checkpoint | None: ...

    def write_checkpoint(self, partition: int, expected: Checkpoint | None, checkpoint: Checkpoint) -> None:
        """Writes W if the store still holds `expected`; StateLostError if not. One atomic step.

        A store that holds `checkpoint` already is a success: the client may ask again after a lost answer.
        """
        ...

    def publish_copies(self, kind: str, partition: int, copies: Mapping[str, bytes]) -> None:
        """Shows a partition's entity partials (identity -> row bytes) to the other partitions.

        Stored in one hash per entity, field = partition; greater offsets only.
        """
        ...

    def read_copies(self, kind: str, identities: Sequence[str]) -> list[dict[int, bytes]]:
        """Every partition's partial of each entity, by partition number: one round trip."""
        ...

    def clear(self, partition: int) -> int:
        """Deletes checkpoint and rows of a partition (rebuild); returns how many keys went."""
        ...

    def memory(self) -> Memory:
        """How full the store is: one round trip."""
        ...

    def check(self) -> list[Finding]:
        """Reachable, noeviction, persistence, memory. Never raises for what it can report."""
        ...

    def close(self) -> None: ...
