"""The page store on Redis or Valkey: few large calls, every rule checked inside the server.

Each command touches the keys of one hash tag only, so the same calls are valid on a server in cluster mode.
A call that failed halfway may be repeated: rows and copies are replaced by greater offsets only, and writing a
checkpoint that is there already is a success. So a lost answer is cured by the client's own retry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import starmap
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from stream.config import RedisSettings
from stream.errors import ConfigError, FatalError
from stream.state.keys import KeyNames
from stream.state.redis_check import examine_server
from stream.state.redis_errors import translate
from stream.state.redis_scripts import (
    CLAIM,
    DELETE_COPIES,
    DELETE_ROWS,
    PUBLISH_COPIES,
    RAISE_EPOCH,
    READ_COPIES,
    REFUSED,
    REPLACE_HEAD,
    TEXT_BY_SHA,
    WRITE_ROWS,
    Script,
)
from stream.state.rules import lost, require_head, require_header
from stream.state.store import Checkpoint, EntityName, Finding, Head, Memory

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

    def claim(self, partition: int, owner: str, now_ms: int) -> Head:
        command = _call(CLAIM, [self._names.head(partition)], now_ms, quote(owner, safe=""))
        head = _decoded(self._run([command])[0])
        assert head is not None
        # After the head: a former owner may still publish until then, and nobody has read anything yet.
        self._run([_call(RAISE_EPOCH, [name], partition, head.epoch) for name in self._names.copies_epochs()])
        return head

    def load_rows(self, keys: Sequence[bytes], heads: Mapping[int, Head]) -> list[bytes | None]:
        tags = [KeyNames.tag_of(key) for key in keys]
        wanted: dict[bytes, list[bytes]] = {}
        # The head is read by the same MGET as its rows: an absent row is believed only beside it.
        for partition in heads:
            wanted[self._names.tag(partition)] = [self._names.head(partition)]
        for tag, key in zip(tags, keys, strict=True):
            wanted.setdefault(tag, []).append(key)
        answers = self._run([("MGET", *names) for names in wanted.values()])
        found = {tag: iter(answer) for tag, answer in zip(wanted, answers, strict=True)}
        for partition, head in heads.items():
            require_head(partition, head, _decoded(next(found[self._names.tag(partition)])))
        return [next(found[tag]) for tag in tags]

    def write_rows(self, rows: Mapping[bytes, bytes], heads: Mapping[int, Head]) -> int:
        partitions = {self._names.tag(partition): partition for partition in heads}
        writes = []
        for tag, keys, some, size in _chunks(list(rows), list(rows.values())):
            partition = partitions[tag]
            known = _encoded(heads[partition])
            command = _call(WRITE_ROWS, [self._names.head(partition), *keys], known, self._ttl_ms, *some)
            writes.append(_Write(command, partition, size))
        return sum([sum(self._run_as_owner(portion)) for portion in _sent_together(writes)])

    def load_head(self, partition: int) -> Head | None:
        return _decoded(self._run([("GET", self._names.head(partition))])[0])

    def write_checkpoints(self, checkpoints: Mapping[int, Checkpoint], heads: Mapping[int, Head]) -> dict[int, Head]:
        return self._replace_heads(heads, {number: heads[number].written(at) for number, at in checkpoints.items()})

    def publish_copies(self, copies: Mapping[int, Mapping[EntityName, bytes]], heads: Mapping[int, Head]) -> None:
        writes = []
        for partition, of_partition in copies.items():
            names = list(starmap(self._names.copies, of_partition))
            for tag, keys, rows, size in _chunks(names, list(of_partition.values())):
                epochs, epoch = KeyNames.epochs_beside(tag), heads[partition].epoch
                command = _call(PUBLISH_COPIES, [epochs, *keys], self._ttl_ms, partition, epoch, *rows)
                writes.append(_Write(command, partition, size))
        for portion in _sent_together(writes):
            self._run_as_owner(portion)

    def read_copies(self, entities: Sequence[EntityName], own: Sequence[int]) -> list[dict[int, bytes]]:
        keys = list(starmap(self._names.copies, entities))
        by_tag: dict[bytes, list[int]] = {}
        for place, key in enumerate(keys):
            by_tag.setdefault(KeyNames.tag_of(key), []).append(place)
        answers = self._run(
            [
                _call(READ_COPIES, [keys[place] for place in places], *[own[place] for place in places])
                for places in by_tag.values()
            ]
        )
        partials: list[dict[int, bytes]] = [{} for _ in keys]
        for places, answer in zip(by_tag.values(), answers, strict=True):
            for place, flat in zip(places, answer, strict=True):
                if flat:
                    partials[place] = dict(zip(map(int, flat[::2]), flat[1::2], strict=True))
        return partials

    def clear(self, partition: int, head: Head) -> int:
        # W goes first: if this is interrupted, a missing W asks for a rebuild, a stale one would hide the loss.
        without = head._replace(checkpoint=None)
        self._replace_heads({partition: head}, {partition: without})
        gone = int(head.checkpoint is not None)
        for names in self._scan(self._names.tag(partition) + b":row:*"):
            command = _call(DELETE_ROWS, [self._names.head(partition), *names], _encoded(without))
            gone += sum(self._run_as_owner([_Write(command, partition)]))
        for names in self._scan(self._names.copies_prefix + b"?}:copy:*"):
            by_tag: dict[bytes, list[bytes]] = {}
            for name in names:
                by_tag.setdefault(KeyNames.epochs_beside(name), []).append(name)
            commands = [_call(DELETE_COPIES, [key, *some], partition, head.epoch) for key, some in by_tag.items()]
            self._run_as_owner([_Write(command, partition) for command in commands])
        return gone

    def memory(self) -> Memory:
        info = self._run([("INFO", "memory")])[0]
        limit = int(info.get("maxmemory", 0)) or int(info.get("total_system_memory", 0))
        return Memory(int(info["used_memory"]), limit)

    def check(self) -> list[Finding]:
        # The probe's head does not exist, which an empty text stands for.
        probe = _call(WRITE_ROWS, self._names.probe(), b"", 1_000, bytes(16))
        return examine_server(self._settings, self._names.prefix, self._run, probe)

    def close(self) -> None:
        self._client.close()

    def _replace_heads(self, known: Mapping[int, Head], new: dict[int, Head]) -> dict[int, Head]:
        answers = self._run(
            [
                _call(REPLACE_HEAD, [self._names.head(number)], _encoded(known[number]), _encoded(head))
                for number, head in new.items()
            ]
        )
        for (number, head), answer in zip(new.items(), answers, strict=True):
            found = _decoded(answer)
            if found != head:
                require_head(number, known[number], found)
        return new

    def _run_as_owner(self, writes: Sequence[_Write]) -> list[int]:
        """Scripts that ask first whether the caller still owns the partition. StateLostError if not."""
        answers = self._run([write.command for write in writes])
        for write, answer in zip(writes, answers, strict=True):
            if answer == REFUSED:
                raise lost(write.partition)
        return answers

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


class _Chunk(NamedTuple):
    """Rows of one hash tag: so many that the server is never busy for long with one script."""

    tag: bytes
    keys: list[bytes]
    rows: list[bytes]
    size: int
    """Bytes of the rows."""


def _chunks(keys: Sequence[bytes], rows: Sequence[bytes]) -> Iterable[_Chunk]:
    """ValueError for a row without a header."""
    sizes = list(map(len, rows))
    if sizes:
        require_header(rows[sizes.index(min(sizes))])
    by_tag: dict[bytes, list[int]] = {}
    for place, tag in enumerate([key[: key.index(b"}") + 1] for key in keys]):
        by_tag.setdefault(tag, []).append(place)
    for tag, places in by_tag.items():
        start = size = 0
        for end, place in enumerate(places, 1):
            size += sizes[place]
            if end - start == _CHUNK_ROWS or size >= _CHUNK_BYTES or end == len(places):
                chosen = places[start:end]
                yield _Chunk(tag, [keys[i] for i in chosen], [rows[i] for i in chosen], size)
                start, size = end, 0


class _Write(NamedTuple):
    """A script that writes for a partition's owner."""

    command: Command
    partition: int
    size: int = 0
    """Bytes of its rows."""


def _sent_together(writes: Iterable[_Write]) -> Iterable[list[_Write]]:
    """In portions of one round trip each."""
    portion: list[_Write] = []
    size = 0
    for write in writes:
        portion.append(write)
        size += write.size
        if size >= _SENT_AT_ONCE_BYTES:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _encoded(head: Head) -> bytes:
    """Readable with redis-cli: epoch, 'transactions:labels' or a dash, owners."""
    checkpoint = "-" if head.checkpoint is None else "{}:{}".format(*head.checkpoint)
    return " ".join([str(head.epoch), checkpoint, *(quote(name, safe="") for name in head.owners)]).encode()


def _decoded(text: bytes | None) -> Head | None:
    if not text:
        return None
    try:
        epoch, checkpoint, *owners = text.decode().split(" ")
        w = None if checkpoint == "-" else Checkpoint(*map(int, checkpoint.split(":")))
        return Head(int(epoch), tuple(map(unquote, owners)), w)
    except (ValueError, TypeError):
        raise FatalError(
            "Redis holds a partition's head that this version of riskstream did not write: use another "
            "redis.namespace, or clear this one"
        ) from None
