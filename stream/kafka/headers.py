"""Names and values of the Kafka headers that riskstream writes, reads and passes on."""

from __future__ import annotations

from typing import NamedTuple

from stream.kafka.port import Headers

TRACEPARENT = "traceparent"
"""W3C trace context: passed from an event to its outputs unchanged."""

SOURCE_MS = "riskstream-source-ms"
"""When the source had the event ready, milliseconds since the epoch in decimal digits: end-to-end latency counts
from here. A source that falls behind writes when the event was due, so that its own delay is not hidden."""

REDRIVEN = "riskstream-redriven"
"""Of a message that was a dead letter and has been sent again: where it first lay, and how often it was redriven,
as topic/partition/offset/times."""

FORWARDED = (TRACEPARENT, SOURCE_MS, REDRIVEN)
"""What a score and an alert take over from their event."""

_MOST_DIGITS = 15
_LONGEST_REDRIVEN = 320


class Redriven(NamedTuple):
    """Where a redriven message first lay, and how often it has been redriven: 1 the first time."""

    topic: str
    partition: int
    offset: int
    times: int


def source_header(source_ms: int) -> tuple[str, bytes]:
    """The header that says when the event was ready."""
    return SOURCE_MS, b"%d" % source_ms


def redriven_header(topic: str, partition: int, offset: int, times: int) -> tuple[str, bytes]:
    """The header of a message that is sent for the `times`-th time again."""
    return REDRIVEN, f"{topic}/{partition}/{offset}/{times}".encode()


def redriven(headers: Headers) -> Redriven | None:
    """What the header says; None without one, or with one that this code has not written."""
    for name, value in headers:
        if name == REDRIVEN and value is not None and len(value) <= _LONGEST_REDRIVEN:
            topic, *numbers = value.decode("ascii", "replace").split("/")
            if topic and len(numbers) == 3 and all(n.isascii() and n.isdigit() and len(n) <= 18 for n in numbers):
                return Redriven(topic, *map(int, numbers))
    return None


def source_ms(headers: Headers) -> int | None:
    """When the source had the event ready; None if no header says so, or not in digits.

    None too for a redriven event: its time as a dead letter is no latency of the engine.
    """
    if any(name == REDRIVEN for name, _ in headers):
        return None
    for name, value in headers:
        if name == SOURCE_MS:
            # The header comes from outside: a foreign value must not raise, nor become a huge integer.
            return int(value) if value is not None and value.isdigit() and len(value) <= _MOST_DIGITS else None
    return None


def forwarded(headers: Headers) -> list[tuple[str, bytes]]:
    """The headers of an event that its outputs carry on."""
    return [(name, value) for name, value in headers if name in FORWARDED]
