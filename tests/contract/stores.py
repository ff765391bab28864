"""The page stores that the contract suites run against, and the accidents that befall their servers."""

from __future__ import annotations

import struct
from typing import Protocol

import redis
from pydantic import SecretStr

from stream.config import RedisSettings
from stream.state.memory import MemoryServer, MemoryStore
from stream.state.redis import RedisStore
from stream.state.store import StateStore

SPEC = "0123456789abcdef"


def row(transactions: int, labels: int = 0, body: bytes = b"") -> bytes:
    return struct.pack("<qq", transactions, labels) + body


class Backend(Protocol):
    """One server, several stores on it, and the accidents that befall servers."""

    def store(self, namespace: str, spec_id: str = SPEC, secret: str = "riskstream") -> StateStore: ...
    def key_names(self, namespace: str) -> list[bytes]: ...
    def save(self, namespace: str) -> object: ...
    def lose(self, namespace: str, saved: object = None) -> None:
        """Everything, or all since `save`."""
        ...


class MemoryBackend:
    def __init__(self) -> None:
        self.server = MemoryServer()

    def store(self, namespace: str, spec_id: str = SPEC, secret: str = "riskstream") -> StateStore:
        return MemoryStore(namespace, spec_id, self.server, secret.encode())

    def key_names(self, namespace: str) -> list[bytes]:
        keys = [*self.server.rows, *self.server.heads, *self.server.copies]
        return [key for key in keys if key.startswith(b"{%b:" % namespace.encode())]

    def save(self, namespace: str) -> object:
        return self.server.snapshot()

    def lose(self, namespace: str, saved: object = None) -> None:
        if saved is None:
            self.server.flush_all()
        else:
            assert isinstance(saved, MemoryServer)
            self.server.restore(saved)


class RedisBackend:
    def __init__(self, url: str) -> None:
        self.url = url
        self.client = redis.Redis.from_url(url)
        self.stores: list[RedisStore] = []

    def store(self, namespace: str, spec_id: str = SPEC, secret: str = "riskstream") -> StateStore:
        made = RedisStore(RedisSettings(url=SecretStr(self.url), key_secret=SecretStr(secret)), namespace, spec_id)
        self.stores.append(made)
        return made

    def key_names(self, namespace: str) -> list[bytes]:
        return list(self.client.scan_iter(match=b"{%b:*" % namespace.encode(), count=1000))

    def save(self, namespace: str) -> object:
        return {key: self.client.dump(key) for key in self.key_names(namespace)}

    def lose(self, namespace: str, saved: object = None) -> None:
        for key in self.key_names(namespace):
            self.client.delete(key)
        assert saved is None or isinstance(saved, dict)
        for key, value in (saved or {}).items():
            self.client.restore(key, 0, value)

    def close(self) -> None:
        for store in self.stores:
            store.close()
        self.client.close()
