"""The checker's own small readers of Kafka and Redis: the vendors' clients and nothing of the engine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

import redis
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient

_ROW = re.compile(rb"\{([^:}]*):([^:}]*):(\d+)\}:(row:|head)")
_COPY = re.compile(rb"\{([^:}]*):([^:}]*):copies-.\}:copy:")
_SCAN_COUNT = 2_000


class TopicReader:
    """Reads committed records outside any group. Close it when done."""

    def __init__(self, bootstrap: str) -> None:
        self._consumer = KafkaConsumer(
            bootstrap_servers=bootstrap, isolation_level="read_committed", enable_auto_commit=False,
            auto_offset_reset="none", max_partition_fetch_bytes=8_000_000, fetch_max_bytes=32_000_000,
            max_poll_records=5_000,
        )  # fmt: skip

    def read_all(self, topic: str, partition: int) -> list[Any]:
        """All committed records from the first offset to the last stable one of now. Blocks."""
        where = TopicPartition(topic, partition)
        self._consumer.assign([where])
        self._consumer.seek(where, self.first_offset(topic, partition))
        end = self._consumer.end_offsets([where])[where]
        records: list[Any] = []
        while self._consumer.position(where) < end:
            for batch in self._consumer.poll(timeout_ms=200).values():
                records.extend(batch)
        return records

    def first_offset(self, topic: str, partition: int) -> int:
        where = TopicPartition(topic, partition)
        return int(self._consumer.beginning_offsets([where])[where])

    def close(self) -> None:
        self._consumer.close()


class GroupReader:
    """The committed offsets of a group, as they are now."""

    def __init__(self, bootstrap: str, group: str) -> None:
        self._admin, self._group = KafkaAdminClient(bootstrap_servers=bootstrap), group

    def committed(self, topics: Iterable[str], partitions: int) -> dict[tuple[str, int], int]:
        """Only partitions for which the group ever committed."""
        wanted = [TopicPartition(topic, number) for topic in topics for number in range(partitions)]
        found = self._admin.list_group_offsets({self._group: wanted})[self._group]
        return {(tp.topic, tp.partition): entry.offset for tp, entry in found.items() if entry.offset >= 0}

    def close(self) -> None:
        self._admin.close()


class StateReader:
    """What a namespace holds in Redis, as bytes."""

    def __init__(self, url: str, namespace: str) -> None:
        self._client = redis.Redis.from_url(url, socket_timeout=20)
        self._namespace = namespace

    def rows(self, partition: int | None = None) -> dict[bytes, bytes]:
        """Every row, or those of one partition, by key. Keys that vanish meanwhile are left out."""
        names = [name for name in self._names() if self._is_row(name, partition)]
        values = self._values(names)
        return {name: value for name, value in zip(names, values, strict=True) if value is not None}

    def checkpoint(self, partition: int) -> bytes | None:
        """The text of W of a partition: the second word of its head."""
        for name in self._names():
            match = _ROW.match(name)
            if match and match[4] == b"head" and int(match[3]) == partition:
                (head,) = self._values([name])
                return head.split(b" ")[1] if head else None
        return None

    def copies(self, partition: int) -> dict[bytes, bytes]:
        """The partition's published entity partials: end of the key (kind and hash) -> row."""
        names = [name for name in self._names() if _COPY.match(name)]
        pipeline = self._client.pipeline(transaction=False)
        for name in names:
            pipeline.hget(name, str(partition))
        found = zip(names, pipeline.execute(), strict=True)
        return {name.partition(b"}:copy:")[2]: value for name, value in found if value is not None}

    def close(self) -> None:
        self._client.close()

    def _names(self) -> list[bytes]:
        # A KEYS or a SCAN by pattern would do the same filtering inside the server.
        return [name for name in self._client.scan_iter(count=_SCAN_COUNT) if self._is_ours(name)]

    def _is_ours(self, name: bytes) -> bool:
        match = _ROW.match(name) or _COPY.match(name)
        return match is not None and unquote(match[1].decode()) == self._namespace

    def _is_row(self, name: bytes, partition: int | None) -> bool:
        match = _ROW.match(name)
        return match is not None and match[4] == b"row:" and partition in (None, int(match[3]))

    def _values(self, names: list[bytes]) -> list[bytes | None]:
        values: list[bytes | None] = []
        for start in range(0, len(names), 1_000):
            values += self._client.mget(names[start : start + 1_000])
        return values


def copy_differences(rows: Mapping[bytes, bytes], copies: Mapping[bytes, bytes]) -> list[str]:
    """Published copies of a partition that are not its own rows."""
    own = {key.partition(b"}:row:")[2]: row for key, row in rows.items()}
    return [
        f"rows_different: copy {end.decode()[:40]} is not its row" for end, row in copies.items() if own.get(end) != row
    ]
