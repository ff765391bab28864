"""What `deadletter list` and `show` do."""

from __future__ import annotations

import base64
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from stream.alerts import masked
from stream.cli.connection import admin_of, connect, reader_of
from stream.cli.context import coloured, note, print_json, print_table
from stream.cli.progress import Steps
from stream.cli.settings import settings_from
from stream.clock import SystemClock
from stream.config import Settings
from stream.deadletters.letter import Letter, Place, Selection, moment_or_age_ms, parse_place
from stream.deadletters.overview import Overview, Status, overview
from stream.errors import ConfigError
from stream.events.moments import moment_text
from stream.events.rejects import RejectCode, Stage
from stream.kafka.port import KafkaClient, TopicPartition
from stream.topics import partition_counts

_HANDLED = (Status.DONE, Status.AGAIN)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The command line's words for a selection. `everything`: redriven ones too."""

    ids: Sequence[str] | None = None
    topic: str | None = None
    partition: Sequence[int] | None = None
    offsets: str | None = None
    since: str | None = None
    until: str | None = None
    stage: Sequence[str] | None = None
    code: Sequence[str] | None = None
    reason: str = ""
    everything: bool = False

    def selection(self, settings: Settings) -> Selection:
        """ConfigError for what cannot be understood."""
        inputs = {"transactions": settings.topics.transactions, "labels": settings.topics.labels}
        topic = inputs.get(self.topic or "", self.topic)
        if topic is not None and topic not in inputs.values():
            raise ConfigError(f"--topic {topic}: allowed: {', '.join(sorted({*inputs, *inputs.values()}))}")
        return Selection(
            places=frozenset(_place(text) for text in self.ids or ()),
            topic=topic,
            partitions=frozenset(self.partition or ()),
            offsets=None if self.offsets is None else _offsets(self.offsets),
            since_ms=_moment("--since", self.since),
            until_ms=_moment("--until", self.until),
            stages=_known("--stage", self.stage, [*Stage]),
            codes=_known("--code", self.code, [*RejectCode]),
            reason=self.reason,
        )


def _place(text: str) -> Place:
    place = parse_place(text)
    if place is None:
        raise ConfigError(f"{printable(text)!r} is no ID: write topic-partition@offset, such as transactions-0@1234")
    return place


def _offsets(text: str) -> tuple[int, int]:
    first, colon, end = text.partition(":")
    if not colon or not all(part.isdigit() for part in (first, end) if part):
        raise ConfigError(f"--offsets {text}: write FIRST:END, such as 1000:2000, 1000: or :2000")
    return int(first or 0), int(end) if end else sys.maxsize


def _moment(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    found = moment_or_age_ms(text, SystemClock().now_ms())
    if found is None:
        raise ConfigError(
            f"{option} {text}: write a time such as 2026-03-01T12:00:00Z, or an age such as 90min, 2h, 7d"
        )
    return found


def _known(option: str, given: Sequence[str] | None, known: Sequence[str]) -> frozenset[str]:
    for text in given or ():
        if text not in known:
            raise ConfigError(f"{option} {text}: allowed: {', '.join(known)}")
    return frozenset(given or ())


@dataclass(frozen=True, slots=True)
class Found:
    """What was found, with what is needed to go on."""

    settings: Settings
    client: KafkaClient
    partitions: dict[str, int]
    overview: Overview
    letters: list[Letter]
    """Those of the overview that were asked for by status, too."""


@contextmanager
def found(ctx: typer.Context, chosen: Chosen, *, with_values: bool) -> Iterator[Found]:
    """Reads what is needed. ConfigError for an ID that is none."""
    settings = settings_from(ctx)
    selection, client = chosen.selection(settings), connect(settings)
    topics = settings.topics
    with admin_of(client) as admin, reader_of(client) as reader, Steps() as steps:
        counts = partition_counts(admin, settings)
        wanted = {name: counts[name] for name in (topics.dead_letters, topics.transactions, topics.labels)}

        def committed(places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
            return {tp: c.offset for tp, c in admin.last_committed(settings.kafka.group, places).items()}

        result = overview(
            reader,
            topics.dead_letters,
            wanted,
            committed,
            selection,
            with_values=with_values,
            tell=lambda what, count: steps.show(what, count, None),
        )
    if missing := sorted(selection.places - {letter.origin for letter in result.letters}):
        raise ConfigError(f"no dead letter of {', '.join(map(str, missing[:5]))}; `deadletter list --all` names them")
    letters = [letter for letter in result.letters if chosen.everything or result.status[letter.origin] not in _HANDLED]
    yield Found(settings, client, wanted, result, letters)


def listing(ctx: typer.Context, chosen: Chosen, *, limit: int, json: bool) -> None:
    """`deadletter list`."""
    with found(ctx, chosen, with_values=False) as result:
        letters, view = result.letters, result.overview
        shown = letters[len(letters) - min(limit, len(letters)) :]
        by_code = Counter(letter.code for letter in letters)
        if json:
            print_json(
                {
                    "letters": [as_json(letter, view.status[letter.origin]) for letter in shown],
                    "total": len(letters),
                    "by_code": dict(by_code.most_common()),
                    "by_status": {status: view.by_status[status] for status in Status},
                    "unreadable": view.unreadable,
                }
            )
            return
        if shown:
            print_table([_row(letter, view.status[letter.origin]) for letter in shown], _HEADER)
        hidden = sum(view.by_status[status] for status in _HANDLED) if not chosen.everything else 0
        codes = ", ".join(f"{count:,} {printable(code)}" for code, count in by_code.most_common())
        print(f"{len(letters):,} dead letters{f': {codes}' if codes else ''}")
        if len(shown) < len(letters):
            print(f"the newest {len(shown):,} are shown; --limit shows more")
        if hidden:
            print(f"{hidden:,} were redriven and are hidden; --all shows them")
        if view.unreadable:
            print(f"{coloured('note:', 'warning')} {view.unreadable:,} records of the topic are no dead letters")


_HEADER = ("id", "failed", "status", "code", "bytes", "key", "reason")


def _row(letter: Letter, status: Status) -> tuple[str, ...]:
    key = printable(masked(_text(letter.key)))
    failed = moment_text(letter.failed_ms)[:19]
    fields = (str(letter.origin), failed, status, letter.code, f"{letter.size:,}", key, letter.reason)
    return tuple(map(printable, fields))


def showing(ctx: typer.Context, chosen: Chosen, *, value: bool, raw: bool, into: Path | None, json: bool) -> None:
    """`deadletter show`."""
    with found(ctx, chosen, with_values=value or raw or into is not None) as result:
        if raw:
            if len(result.letters) != 1:
                raise ConfigError(f"--raw: {len(result.letters)} letters fit, it takes one; give its ID")
            sys.stdout.buffer.write(result.letters[0].value or b"")
            sys.stdout.buffer.flush()
            return
        if into is not None:
            count = _write(result.letters, into)
            note(f"{count} values are in {into}; they name accounts. Then: riskstream deadletter redrive --from {into}")
            return
        for letter in result.letters:
            status = result.overview.status[letter.origin]
            if json:
                print_json(as_json(letter, status, value=value))
            else:
                _print(letter, status, value)


def _write(letters: Sequence[Letter], folder: Path) -> int:
    """One file a letter, readable by its owner alone."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for letter in letters:
        file = folder / str(letter.origin)
        file.touch(mode=0o600)
        file.write_bytes(letter.value or b"")
    return len(letters)


def _print(letter: Letter, status: Status, value: bool) -> None:
    before = f", {letter.times} times redriven, first {letter.first}" if letter.times else ""
    lines = [
        (str(letter.origin), f"{status}{before}"),
        (
            "failed",
            f"{moment_text(letter.failed_ms)} in {letter.stage}: {letter.code} (riskstream {letter.engine_version})",
        ),
        ("reason", letter.reason),
        ("arrived", moment_text(letter.arrived_ms) if 0 <= letter.arrived_ms < 2**42 else str(letter.arrived_ms)),
        ("key", _text(letter.key) if value else masked(_text(letter.key))),
        ("headers", ", ".join(_header(name, content, value) for name, content in letter.headers) or "none"),
        ("value", _text(letter.value) if value else f"{letter.size:,} bytes (--value shows them)"),
    ]
    print_table([(name, printable(text)) for name, text in lines])
    print()


def as_json(letter: Letter, status: Status, *, value: bool = False) -> dict[str, Any]:
    """One letter for a machine; key and value as base64, and only when asked for."""
    document: dict[str, Any] = {
        "id": str(letter.origin),
        "status": status,
        "topic": letter.origin.topic,
        "partition": letter.origin.partition,
        "offset": letter.origin.offset,
        "failed_at": moment_text(letter.failed_ms),
        "stage": letter.stage,
        "code": letter.code,
        "field": letter.field,
        "reason": letter.reason,
        "redriven": letter.times,
        "first": str(letter.first),
        "bytes": letter.size,
        "key_masked": masked(_text(letter.key)),
        "engine_version": letter.engine_version,
    }
    if value:
        document["key"] = _base64(letter.key)
        document["value"] = _base64(letter.value)
        document["headers"] = [{"name": name, "value": _base64(content)} for name, content in letter.headers]
    return document


def printable(text: str) -> str:
    """What comes from outside must not steer the terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _header(name: str, content: bytes | None, value: bool) -> str:
    return f"{name}={_text(content)}" if value else name


def _text(content: bytes | None) -> str:
    return "" if content is None else content.decode("utf-8", "backslashreplace")


def _base64(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()
