"""A dead letter as it lies on its topic, and which ones an operator means."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from stream.kafka.headers import Redriven, redriven
from stream.kafka.port import Record, TopicPartition

_PLACE = re.compile(r"([A-Za-z0-9._-]+)-([0-9]{1,9})@([0-9]{1,18})")


class Place(NamedTuple):
    """Where a message lies. Written as topic-partition@offset, as `riskstream audit` does."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}@{self.offset}"

    @property
    def tp(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)


def parse_place(text: str) -> Place | None:
    """The inverse of str(); None for another form."""
    found = _PLACE.fullmatch(text)
    return Place(found[1], int(found[2]), int(found[3])) if found else None


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter. `origin` identifies it: a message has at most one."""

    origin: Place
    arrived_ms: int
    """The Kafka timestamp of the message that died, -1 if it had none."""
    written_ms: int
    """The Kafka timestamp of the letter itself."""
    failed_ms: int
    stage: str
    code: str
    field: str | None
    reason: str
    engine_version: str
    size: int
    """Bytes of the value; 0 for none."""
    key: bytes | None = dataclasses.field(repr=False)
    value: bytes | None = dataclasses.field(repr=False)
    headers: tuple[tuple[str, bytes], ...] = dataclasses.field(repr=False)

    @property
    def redriven(self) -> Redriven | None:
        """Where the message first lay, if it had been redriven before it died once more."""
        return redriven(self.headers)

    @property
    def first(self) -> Place:
        """Where the message lay before it was redriven at all."""
        before = self.redriven
        return self.origin if before is None else Place(before.topic, before.partition, before.offset)

    @property
    def times(self) -> int:
        """How often it had been redriven before."""
        before = self.redriven
        return 0 if before is None else before.times

    def without_value(self) -> Letter:
        """To remember many of them."""
        return replace(self, value=None)


def parse_letter(record: Record) -> Letter | None:
    """None if the record is no dead letter that can be read."""
    try:
        content = json.loads(record.value or b"")
        origin = content["origin"]
        value = _bytes(content["value"])
        place = parse_place(str(Place(str(origin["topic"]), int(origin["partition"]), int(origin["offset"]))))
        if place is None:
            return None
        return Letter(
            origin=place,
            arrived_ms=int(origin["timestamp_ms"]),
            written_ms=record.timestamp,
            failed_ms=int(datetime.fromisoformat(content["failed_at"]).timestamp() * 1000),
            stage=str(content["stage"]),
            code=str(content["code"]),
            field=None if content["field"] is None else str(content["field"]),
            reason=str(content["reason"]),
            engine_version=str(content["engine_version"]),
            size=len(value or b""),
            key=_bytes(content["key"]),
            value=value,
            headers=tuple(_headers(content["headers"])),
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)


def _headers(headers: list[Mapping[str, Any]]) -> Iterator[tuple[str, bytes]]:
    for header in headers:
        # Kafka allows a header without a value, which no type of the port speaks of.
        yield str(header["name"]), _bytes(header["value"])  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters are meant: those that fit everything that is given."""

    places: frozenset[Place] = frozenset()
    topic: str | None = None
    partitions: frozenset[int] = frozenset()
    offsets: tuple[int, int] | None = None
    """Of the origin: [first, end)."""
    since_ms: int | None = None
    until_ms: int | None = None
    """By the time of failure: [since, until)."""
    stages: frozenset[str] = frozenset()
    codes: frozenset[str] = frozenset()
    reason: str = ""
    """Part of the reason's words; capitals do not matter."""

    def fits(self, letter: Letter) -> bool:
        origin = letter.origin
        return (
            (not self.places or origin in self.places)
            and (self.topic is None or origin.topic == self.topic)
            and (not self.partitions or origin.partition in self.partitions)
            and (self.offsets is None or self.offsets[0] <= origin.offset < self.offsets[1])
            and (self.since_ms is None or letter.failed_ms >= self.since_ms)
            and (self.until_ms is None or letter.failed_ms < self.until_ms)
            and (not self.stages or letter.stage in self.stages)
            and (not self.codes or letter.code in self.codes)
            and self.reason.casefold() in letter.reason.casefold()
        )


def moment_or_age_ms(text: str, now_ms: int) -> int | None:
    """An RFC 3339 time or a date (UTC), or an age such as 30min, 12h or 7d before now; None for another form."""
    units_ms = {"min": 60_000, "h": 3_600_000, "d": 86_400_000}
    if found := re.fullmatch(r"([0-9]{1,6})(min|h|d)", text):
        return now_ms - int(found[1]) * units_ms[found[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
