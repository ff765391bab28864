"""Alerts as a person reads them: the newest ones, new ones as they come, and words for each."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stream.kafka.port import Reader, Record, TopicPartition
from stream.kafka.reading import read_range

_POLL_RECORDS, _POLL_MS = 1_000, 200


def newest(reader: Reader, topic: str, partitions: int, count: int) -> tuple[list[Record], dict[TopicPartition, int]]:
    """The last `count` alerts by Kafka time, oldest first, and the offsets behind them. Blocks."""
    numbers = [TopicPartition(topic, number) for number in range(partitions)]
    ranges = {tp: (reader.first_offset(tp), reader.end_offset(tp)) for tp in numbers}
    ends = {tp: end for tp, (_, end) in ranges.items()}
    back = 2 * count + 8
    while True:
        # Transactions' markers take offsets too, so how far back the last alerts lie is not known.
        starts = {tp: max(first, end - back) for tp, (first, end) in ranges.items() if first < end}
        found = list(read_range(reader, starts, ends))
        if len(found) >= count or all(starts[tp] == ranges[tp][0] for tp in starts):
            found.sort(key=lambda record: record.timestamp)
            return found[len(found) - min(count, len(found)) :], ends
        back *= 4


def follow(reader: Reader, positions: Mapping[TopicPartition, int], stop: threading.Event) -> Iterator[Record]:
    """Alerts from these offsets on, as they come, until stopped. Blocks."""
    reader.assign(positions)
    while not stop.is_set():
        for records in reader.poll(_POLL_RECORDS, _POLL_MS).values():
            yield from records


def parsed(record: Record) -> dict[str, Any] | None:
    """An alert's content; None if it is none that can be read."""
    try:
        content = json.loads(record.value or b"")
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def headline(alert: Mapping[str, Any]) -> tuple[str, str]:
    """(the decision in capitals, the rest of the first line): when, score, amount, account masked."""
    amount, currency = alert.get("amount"), alert.get("currency") or ""
    score, band = alert.get("score"), alert.get("band")
    parts = [
        f"score {score}{f' ({band})' if band else ''}" if score is not None else "no score (rules only)",
        f"{amount:,.2f} {currency}".strip() if isinstance(amount, int | float) else "",
        f"account {masked(alert.get('account_id'))}",
        f"event of {str(alert.get('timestamp'))[:19]}",
    ]
    return str(alert.get("decision", "?")).upper(), "  ".join(part for part in parts if part)


def reasons(alert: Mapping[str, Any]) -> list[str]:
    """Why, in words: the rules that applied, the model's factors, and reservations."""
    lines = [f"{hit.get('reason') or hit.get('name')} (rule {hit.get('name')})" for hit in _items(alert, "rules")]
    lines += [str(reason.get("text")) for reason in _items(alert, "reasons")]
    flags: Sequence[str] = alert.get("flags") or ()
    return [*lines, *([f"reservations: {', '.join(flags)}"] if flags else [])]


def masked(identity: object) -> str:
    """The last characters of an identifier, at most four and at most half of them."""
    text = str(identity or "")
    shown = min(4, len(text) // 2)
    return "…" + text[len(text) - shown :]


def _items(alert: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return [item for item in alert.get(name) or () if isinstance(item, Mapping)]
