"""The page store on Redis or Valkey: few large calls, every rule checked inside the server.

Each command touches the keys of one hash tag only, so the same calls are valid on a server in cluster mode.
A call that failed halfway may be repeated: rows and copies are replaced by greater offsets only, and writing a
checkpoint that is there already is a success. So a lost answer is cured by the client's own retry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from stream.config import RedisSettings
from stream.errors import ConfigError, FatalError
from stream.state.keys import KeyNames
from stream.state.redis_check import examine_server
from stream.state.redis_errors import translate
from stream.state.redis_scripts import (
    PUBLISH_COPIES,
    READ_COPIES,
    TEXT_BY_SHA,
    WRITE_CHECKPOINT,
    WRITE_ROWS,
    Script,
)
from stream.state.rules import require_checkpoint, require_header
from stream.state.store import Checkpoint, Finding, Memory

Command = tuple[Any, ...]

_TRIES_AGAIN = 2
_CHUNK_ROWS = 500
_CHUNK_BYTES = 1_000_000
_SENT_AT_ONCE_BYTES = 4_000_000
_SCAN_COUNT = 1_000
_DAY_MS = 86_400_000


def connect(settings: RedisSettings) -> redis.Redis:
    """A client that has not connected yet. ConfigError for an unreadable URL; its text is never shown."""
    options: dict[str, Any] = {
        "socket_timeout": settings.timeout_ms / 1000,
        "socket_connect_timeout": settings.timeout_ms / 1000,
        "retry": Retry(ExponentialBackoff(cap=0.1, base=0.01), _TRIES_AGAIN),
        "protocol": 2,
    }
    url = settings.url.get_secret_value()
    files = {"ca_certs": settings.ssl_ca_file, "certfile": settings.ssl_cert_file, "keyfile": settings.ssl_key_file}
    if url.startswith("rediss://"):
        options |= {f"ssl_{name}": str(file) for name, file in files.items() if file is not None}
    try:
        client = redis.Redis.from_url(url, **options)
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError):
        raise ConfigError(
            "redis.url cannot be read: write redis://user:password@host:port/0 (rediss:// for TLS), with special "
            "characters of the password percent-encoded"
        ) from None
    return client


class RedisStore:
    """A StateStore on one Redis or Valkey server. Connects at the first call; every call blocks.

    Longest wait of one round trip: three times `timeout_ms`, then UnavailableError.
    """

    def __init__(self, settings: RedisSettings, namespace: str, spec_id: str) -> None:
        self._settings = settings
        self._names = KeyNames(namespace, spec_id, settings.key_secret.get_secret_value().encode())
        self._ttl_ms = settings.row_ttl_days * _DAY_MS
        self._client = connect(settings)

    def row_key(self, partition: int, kind: str, identity: str) -> bytes:
        return self._names.row(partition, kind, identity)

    def load_rows(self, keys: Sequence[bytes], checkpoints: Mapping[int, Checkpoint | None]) -> list[bytes | None]:
        tags = [KeyNames.tag_of(key) for key in keys]
        wanted: dict[bytes, list[bytes]] = {}
        # The checkpoint is read by the same MGET as its rows: an absent row is believed only beside it.
        for partition in checkpoints:
            wanted[self._names.tag(partition)] = [self._names.checkpoint(partition)]
        for tag, key in zip(tags, keys, strict=True):
            wanted.setdefault(tag, []).append(key)
        answers = self._run([("MGET", *names) for names in wanted.values()])
        found = {tag: iter(answer) for tag, answer in zip(wanted, answers, strict=True)}
        for partition, expected in checkpoints.items():
            require_checkpoint(partition, expected, _decoded(next(found[self._names.tag(partition)])))
        return [next(found[tag]) for tag in tags]

    def write_rows(self, rows: Mapping[bytes, bytes]) -> int:
        commands = [
            _call(WRITE_ROWS, [key for key, _ in chunk], self._ttl_ms, *[row for _, row in chunk])
            for chunk in _chunks(rows.items())
        ]
        return sum(sum(self._run(some)) for some in _sent_together(commands))

    def load_checkpoint(self, partition: int) -> Checkpoint | None:
        return _decoded(self._run([("GET", self._names.checkpoint(partition))])[0])

    def write_checkpoint(self, partition: int, expected: Checkpoint | None, checkpoint: Checkpoint) -> None:
        name = self._names.checkpoint(partition)
        command = _call(WRITE_CHECKPOINT, [name], _encoded(expected), _encoded(checkpoint))
        found = _decoded(self._run([command])[0])
        if found != checkpoint:
            require_checkpoint(partition, expected, found)

    def publish_copies(self, kind: str, partition: int, copies: Mapping[str, bytes]) -> None:
        rows = [(self._names.copies(kind, identity), row) for identity, row in copies.items()]
        commands = [
            _call(PUBLISH_COPIES, [key for key, _ in chunk], self._ttl_ms, partition, *[row for _, row in chunk])
            for chunk in _chunks(rows)
        ]
        for some in _sent_together(commands):
            self._run(some)

    def read_copies(self, kind: str, identities: Sequence[str]) -> list[dict[int, bytes]]:
        keys = [self._names.copies(kind, identity) for identity in identities]
        by_tag: dict[bytes, list[int]] = {}
        for place, key in enumerate(keys):
            by_tag.setdefault(KeyNames.tag_of(key), []).append(place)
        answers = self._run([_call(READ_COPIES, [keys[place] for place in places]) for places in by_tag.values()])
        partials: list[dict[int, bytes]] = [{} for _ in keys]
        for places, answer in zip(by_tag.values(), answers, strict=True):
            for place, flat in zip(places, answer, strict=True):
                partials[place] = {int(partition): row for partition, row in zip(flat[::2], flat[1::2], strict=True)}
        return partials

    def clear(self, partition: int) -> int:
        # W goes first: if this is interrupted, a missing W asks for a rebuild, a stale one would hide the loss.
        gone = int(self._run([("UNLINK", self._names.checkpoint(partition))])[0])
        for names in self._scan(self._names.tag(partition) + b":*"):
            gone += int(self._run([("UNLINK", *names)])[0])
        for names in self._scan(self._names.copies_prefix + b"?}:*"):
            self._run([("HDEL", name, partition) for name in names])
        return gone

    def memory(self) -> Memory:
        info = self._run([("INFO", "memory")])[0]
        limit = int(info.get("maxmemory", 0)) or int(info.get("total_system_memory", 0))
        return Memory(int(info["used_memory"]), limit)

    def check(self) -> list[Finding]:
        probe = _call(WRITE_ROWS, [self._names.probe()], 1_000, bytes(16))
        return examine_server(self._settings, self._names.prefix, self._run, probe)

    def close(self) -> None:
        self._client.close()

    def _scan(self, pattern: bytes) -> Iterable[list[bytes]]:
        """The names that match, in non-empty portions."""
        cursor: Any = 0
        while True:
            cursor, names = self._run([("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT)])[0]
            if names:
                yield names
            if not int(cursor):
                return

    def _run(self, commands: Sequence[Command]) -> list[Any]:
        """All commands in one round trip. Raises classes of `stream.errors` only."""
        if not commands:
            return []
        answers = self._send(commands)
        unknown = [place for place, answer in enumerate(answers) if isinstance(answer, redis.exceptions.NoScriptError)]
        if unknown:
            # The server has forgotten its scripts (restart, SCRIPT FLUSH): EVAL runs and caches the text.
            again = [("EVAL", TEXT_BY_SHA[commands[place][1]], *commands[place][2:]) for place in unknown]
            for place, answer in zip(unknown, self._send(again), strict=True):
                answers[place] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise translate(answer, self._names.prefix) from answer
        return answers

    def _send(self, commands: Sequence[Command]) -> list[Any]:
        pipeline: Any = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        try:
            return list(pipeline.execute(raise_on_error=False))
        except (redis.RedisError, OSError) as error:
            raise translate(error, self._names.prefix) from error
        except BaseException:
            # Interrupted between question and answer: the connection must not be used for the next question.
            self._client.connection_pool.disconnect()
            raise


def _call(script: Script, keys: Sequence[bytes], *arguments: Any) -> Command:
    return ("EVALSHA", script.sha, len(keys), *keys, *arguments)


def _chunks(rows: Iterable[tuple[bytes, bytes]]) -> Iterable[list[tuple[bytes, bytes]]]:
    """Rows of one hash tag each, small enough that the server is never busy for long with one script."""
    open_chunks: dict[bytes, list[tuple[bytes, bytes]]] = {}
    sizes: dict[bytes, int] = {}
    for key, row in rows:
        require_header(row)
        tag = KeyNames.tag_of(key)
        chunk = open_chunks.setdefault(tag, [])
        chunk.append((key, row))
        sizes[tag] = sizes.get(tag, 0) + len(row)
        if len(chunk) >= _CHUNK_ROWS or sizes[tag] >= _CHUNK_BYTES:
            yield open_chunks.pop(tag)
            sizes[tag] = 0
    yield from open_chunks.values()


def _sent_together(commands: Sequence[Command]) -> Iterable[list[Command]]:
    """Commands in portions of one round trip each."""
    portion: list[Command] = []
    size = 0
    for command in commands:
        portion.append(command)
        size += sum(len(argument) for argument in command if isinstance(argument, bytes))
        if size >= _SENT_AT_ONCE_BYTES:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _encoded(checkpoint: Checkpoint | None) -> bytes:
    """Readable with redis-cli: 'transactions:labels', nothing for none."""
    return b"" if checkpoint is None else b"%d:%d" % checkpoint


def _decoded(text: bytes | None) -> Checkpoint | None:
    if not text:
        return None
    transactions, _, labels = text.partition(b":")
    try:
        return Checkpoint(int(transactions), int(labels))
    except ValueError:
        raise FatalError(
            "Redis holds a checkpoint that riskstream did not write: use another redis.namespace, or clear this one"
        ) from None
