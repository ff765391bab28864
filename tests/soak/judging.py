"""Judges one partition of a soak: the checker over its topics and rows, beside the undisturbed run. Writes JSON."""

from __future__ import annotations

import functools
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from stream.config import load_settings
from tests.checker import checks
from tests.checker.readers import GroupReader, StateReader, TopicReader, copy_differences
from tests.soak import archive, undisturbed


def judge(order: dict[str, Any]) -> None:
    """`order`: settings, bootstrap, redis, folder, partition, partitions, kills [[at_ms, [partitions]]], out."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    settings = load_settings(None, {}, order["settings"]).settings
    number, folder = int(order["partition"]), Path(order["folder"])
    names = {field: getattr(settings.topics, field) for field in checks.Topics._fields}
    topics = checks.Topics(**names)
    reader = TopicReader(order["bootstrap"])
    group = GroupReader(order["bootstrap"], settings.kafka.group)
    contents = checks.read(functools.partial(archive.whole, folder, reader), [number], topics)
    committed = group.committed((topics.transactions, topics.labels), order["partitions"])
    state = StateReader(order["redis"], settings.state_namespace)
    rows, checkpoint, copies = state.rows(number), state.checkpoint(number), state.copies(number)
    for part in (reader, group, state):
        part.close()

    found = checks.complaints(contents, committed, topics)
    found += checks.rows_ahead(rows, committed, topics)
    expected = undisturbed.run(settings, contents, number, order["partitions"])
    found += checks.score_differences(contents.scores, expected.scores)
    found += checks.row_differences(rows, expected.rows)
    if checkpoint != b"%d:%d" % expected.done:
        found.append(f"rows_different: partition {number}: W is {checkpoint!r}, undisturbed {expected.done}")
    found += copy_differences(rows, copies)
    records = contents.transactions[number]
    verdict = {
        "partition": number,
        "events": len(records),
        "scored": len(contents.scores.ordered),
        "alerts": len(contents.alerts.ordered),
        "dead_letters": len(contents.dead_letters.ordered),
        "labels": len(contents.labels[number]),
        "rows": len(rows),
        "compared": checks.comparable(contents.scores),
        "complaints": found[:200],
        "counts": checks.counts(found),
        "scored_again_ms": _next_scores(contents.scores, number, order["kills"]),
    }
    Path(order["out"]).write_text(json.dumps(verdict))


def _next_scores(scores: checks.Outputs, number: int, kills: list[tuple[float, list[int]]]) -> list[float | None]:
    """For each kill of a worker that held this partition: ms until its next score was made; else None."""
    times = sorted({datetime.fromisoformat(score["scored_at"]).timestamp() * 1000 for _, score in scores.ordered})
    waits: list[float | None] = []
    for at_ms, partitions in kills:
        later = next((time for time in times if time > at_ms), None) if number in partitions else None
        waits.append(None if later is None else later - at_ms)
    return waits
