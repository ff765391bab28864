"""Keeps the records that retention is about to drop, for the checker: it judges by the whole input."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, NamedTuple

from tests.checker.readers import TopicReader


class Kept(NamedTuple):
    """A record as it was in the log; see checks.Record."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


def keep(folder: Path, bootstrap: str, topic: str, partition: int) -> None:
    """Writes every record that the partition has now to a file."""
    reader = TopicReader(bootstrap)
    with _file(folder, topic, partition).open("w") as file:
        for record in reader.read_all(topic, partition):
            headers = [(name, _text(value)) for name, value in record.headers]
            line = [record.offset, record.timestamp, _text(record.key), _text(record.value), headers]
            file.write(json.dumps(line) + "\n")
    reader.close()


def kept(folder: Path, topic: str, partition: int) -> list[Kept]:
    """What was kept of a partition; nothing if nothing was dropped."""
    file = _file(folder, topic, partition)
    if not file.exists():
        return []
    found = []
    for line in file.read_text().splitlines():
        offset, timestamp, key, value, headers = json.loads(line)
        pairs = tuple((name, _bytes(text) or b"") for name, text in headers)
        found.append(Kept(offset, timestamp, _bytes(key), _bytes(value), pairs))
    return found


def whole(folder: Path, reader: TopicReader, topic: str, partition: int) -> list[Any]:
    """All records of a partition, dropped ones too."""
    early = kept(folder, topic, partition)
    later = reader.read_all(topic, partition)
    first = later[0].offset if later else 2**62
    return [record for record in early if record.offset < first] + later


def _file(folder: Path, topic: str, partition: int) -> Path:
    return folder / f"kept-{topic}-{partition}.jsonl"


def _text(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
