"""The page store in memory: the reference for `redis.py`, and what tests and offline scoring use.

`MemoryServer` stands for the Redis server: several stores may share one, as workers share a Redis.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stream.errors import UnavailableError
from stream.state.keys import KeyNames
from stream.state.rules import replaces, require_checkpoint, require_header
from stream.state.store import Checkpoint, Finding, Memory

_LIMIT_BYTES = 2**40


@dataclass
class MemoryServer:
    """What a Redis server would hold. `available` False makes every call of its stores fail."""

    rows: dict[bytes, bytes] = field(default_factory=dict)
    checkpoints: dict[bytes, Checkpoint] = field(default_factory=dict)
    copies: dict[bytes, dict[int, bytes]] = field(default_factory=dict)
    available: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)

    def flush_all(self) -> None:
        """Loses everything, as FLUSHALL does."""
        self.restore(MemoryServer())

    def snapshot(self) -> MemoryServer:
        """A copy of what is held now: with `restore`, a server that came back with an older snapshot."""
        with self.lock:
            copies = {key: dict(partials) for key, partials in self.copies.items()}
            return MemoryServer(dict(self.rows), dict(self.checkpoints), copies)

    def restore(self, older: MemoryServer) -> None:
        """Holds what `older` holds, from now on."""
        older = older.snapshot()
        with self.lock:
            self.rows, self.checkpoints, self.copies = older.rows, older.checkpoints, older.copies


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

    def load_rows(self, keys: Sequence[bytes], checkpoints: Mapping[int, Checkpoint | None]) -> list[bytes | None]:
        self._require_available()
        with self.server.lock:
            for partition, expected in checkpoints.items():
                require_checkpoint(partition, expected, self._held(partition))
            return [self.server.rows.get(key) for key in keys]

    def write_rows(self, rows: Mapping[bytes, bytes]) -> int:
        self._require_available()
        for row in rows.values():
            require_header(row)
        with self.server.lock:
            newer = {key: row for key, row in rows.items() if replaces(row, self.server.rows.get(key))}
            self.server.rows.update(newer)
        return len(newer)

    def load_checkpoint(self, partition: int) -> Checkpoint | None:
        self._require_available()
        return self._held(partition)

    def write_checkpoint(self, partition: int, expected: Checkpoint | None, checkpoint: Checkpoint) -> None:
        self._require_available()
        with self.server.lock:
            found = self._held(partition)
            if found != checkpoint:
                require_checkpoint(partition, expected, found)
            self.server.checkpoints[self._names.checkpoint(partition)] = checkpoint

    def publish_copies(self, kind: str, partition: int, copies: Mapping[str, bytes]) -> None:
        self._require_available()
        for row in copies.values():
            require_header(row)
        with self.server.lock:
            for identity, row in copies.items():
                partials = self.server.copies.setdefault(self._names.copies(kind, identity), {})
                if replaces(row, partials.get(partition)):
                    partials[partition] = row

    def read_copies(self, kind: str, identities: Sequence[str]) -> list[dict[int, bytes]]:
        self._require_available()
        with self.server.lock:
            return [dict(self.server.copies.get(self._names.copies(kind, identity), {})) for identity in identities]

    def clear(self, partition: int) -> int:
        self._require_available()
        tag = self._names.tag(partition)
        with self.server.lock:
            gone = [key for key in self.server.rows if key.startswith(tag)]
            for key in gone:
                del self.server.rows[key]
            had_checkpoint = self.server.checkpoints.pop(self._names.checkpoint(partition), None) is not None
            for key, partials in self.server.copies.items():
                if key.startswith(self._names.copies_prefix):
                    partials.pop(partition, None)
            self.server.copies = {key: partials for key, partials in self.server.copies.items() if partials}
        return len(gone) + had_checkpoint

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

    def _held(self, partition: int) -> Checkpoint | None:
        return self.server.checkpoints.get(self._names.checkpoint(partition))

    def _require_available(self) -> None:
        if not self.server.available:
            raise UnavailableError("the in-memory store is switched off")
