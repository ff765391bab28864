"""The page store in memory: the reference for `redis.py`, and what tests and offline scoring use.

`MemoryServer` stands for the Redis server: several stores may share one, as workers share a Redis.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stream.errors import UnavailableError
from stream.state.keys import KeyNames
from stream.state.rules import claimed, lost, replaces, require_head, require_header
from stream.state.store import Checkpoint, EntityName, Finding, Head, Memory

_LIMIT_BYTES = 2**40


@dataclass
class MemoryServer:
    """What a Redis server would hold. `available` False makes every call of its stores fail."""

    rows: dict[bytes, bytes] = field(default_factory=dict)
    heads: dict[bytes, Head] = field(default_factory=dict)
    copies: dict[bytes, dict[int, bytes]] = field(default_factory=dict)
    copies_epochs: dict[bytes, int] = field(default_factory=dict)
    available: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def checkpoints(self) -> dict[bytes, Checkpoint]:
        """W by the head's name, of the partitions that have one."""
        return {name: head.checkpoint for name, head in self.heads.items() if head.checkpoint is not None}

    def flush_all(self) -> None:
        """Loses everything, as FLUSHALL does."""
        self.restore(MemoryServer())

    def snapshot(self) -> MemoryServer:
        """A copy of what is held now: with `restore`, a server that came back with an older snapshot."""
        with self.lock:
            copies = {key: dict(partials) for key, partials in self.copies.items()}
            return MemoryServer(dict(self.rows), dict(self.heads), copies, dict(self.copies_epochs))

    def restore(self, older: MemoryServer) -> None:
        """Holds what `older` holds, from now on."""
        older = older.snapshot()
        with self.lock:
            self.rows, self.heads = older.rows, older.heads
            self.copies, self.copies_epochs = older.copies, older.copies_epochs


class MemoryStore:
    """A StateStore without a server of its own. Safe to use from several threads."""

    def __init__(
        self,
        namespace: str = "riskstream",
        spec_id: str = "0" * 16,
        server: MemoryServer | None = None,
        key_secret: bytes = b"riskstream",
    ) -> None:
        self.server = server if server is not None else MemoryServer()
        self._names = KeyNames(namespace, spec_id, key_secret)

    def row_key(self, partition: int, kind: str, identity: str) -> bytes:
        return self._names.row(partition, kind, identity)

    def claim(self, partition: int, owner: str, now_ms: int) -> Head:
        self._require_available()
        name = self._names.head(partition)
        with self.server.lock:
            head = claimed(self.server.heads.get(name), owner, now_ms)
            self.server.heads[name] = head
            self.server.copies_epochs[name] = max(head.epoch, self.server.copies_epochs.get(name, 0))
        return head

    def load_rows(self, keys: Sequence[bytes], heads: Mapping[int, Head]) -> list[bytes | None]:
        self._require_available()
        with self.server.lock:
            for partition, head in heads.items():
                require_head(partition, head, self._held(partition))
            return [self.server.rows.get(key) for key in keys]

    def write_rows(self, rows: Mapping[bytes, bytes], heads: Mapping[int, Head]) -> int:
        self._require_available()
        partitions = {self._names.tag(partition): partition for partition in heads}
        for row in rows.values():
            require_header(row)
        owners = {key: partitions[KeyNames.tag_of(key)] for key in rows}
        with self.server.lock:
            refused = [number for number in set(owners.values()) if self._held(number) != heads[number]]
            newer = {
                key: row
                for key, row in rows.items()
                if owners[key] not in refused and replaces(row, self.server.rows.get(key))
            }
            self.server.rows.update(newer)
        if refused:
            raise lost(refused[0])
        return len(newer)

    def load_head(self, partition: int) -> Head | None:
        self._require_available()
        return self._held(partition)

    def write_checkpoints(self, checkpoints: Mapping[int, Checkpoint], heads: Mapping[int, Head]) -> dict[int, Head]:
        self._require_available()
        written = {partition: heads[partition].written(at) for partition, at in checkpoints.items()}
        with self.server.lock:
            for partition, head in written.items():
                found = self._held(partition)
                if found != head:
                    require_head(partition, heads[partition], found)
                self.server.heads[self._names.head(partition)] = head
        return written

    def publish_copies(self, copies: Mapping[int, Mapping[EntityName, bytes]], heads: Mapping[int, Head]) -> None:
        self._require_available()
        for rows in copies.values():
            for row in rows.values():
                require_header(row)
        with self.server.lock:
            for partition, rows in copies.items():
                if rows:
                    self._require_epoch(partition, heads[partition])
                for entity, row in rows.items():
                    partials = self.server.copies.setdefault(self._names.copies(*entity), {})
                    if replaces(row, partials.get(partition)):
                        partials[partition] = row

    def read_copies(self, entities: Sequence[EntityName], own: Sequence[int]) -> list[dict[int, bytes]]:
        self._require_available()
        with self.server.lock:
            found = [self.server.copies.get(self._names.copies(*entity), {}) for entity in entities]
            return [
                {partition: row for partition, row in rows.items() if partition != mine}
                for rows, mine in zip(found, own, strict=True)
            ]

    def clear(self, partition: int, head: Head) -> int:
        self._require_available()
        tag = self._names.tag(partition)
        with self.server.lock:
            require_head(partition, head, self._held(partition))
            self._require_epoch(partition, head)
            self.server.heads[self._names.head(partition)] = head._replace(checkpoint=None)
            gone = [key for key in self.server.rows if key.startswith(tag)]
            for key in gone:
                del self.server.rows[key]
            for key, partials in self.server.copies.items():
                if key.startswith(self._names.copies_prefix):
                    partials.pop(partition, None)
            self.server.copies = {key: partials for key, partials in self.server.copies.items() if partials}
        return len(gone) + (head.checkpoint is not None)

    def memory(self) -> Memory:
        self._require_available()
        with self.server.lock:
            used = sum(map(len, self.server.rows.values()))
        return Memory(used, _LIMIT_BYTES)

    def check(self) -> list[Finding]:
        if not self.server.available:
            return [Finding("state store", "error", "the in-memory store is switched off", "switch it on")]
        message = "in memory: nothing survives the end of the process"
        return [Finding("state store", "ok", message)]

    def close(self) -> None:
        """Nothing to release: the server outlives its stores."""

    def _held(self, partition: int) -> Head | None:
        return self.server.heads.get(self._names.head(partition))

    def _require_epoch(self, partition: int, head: Head) -> None:
        if self.server.copies_epochs.get(self._names.head(partition)) != head.epoch:
            raise lost(partition)

    def _require_available(self) -> None:
        if not self.server.available:
            raise UnavailableError("the in-memory store is switched off")
