"""Names and values of the Kafka headers that riskstream writes, reads and passes on."""

from __future__ import annotations

from stream.kafka.port import Headers

TRACEPARENT = "traceparent"
"""W3C trace context: passed from an event to its outputs unchanged."""

SOURCE_MS = "riskstream-source-ms"
"""When the source had the event ready, milliseconds since the epoch in decimal digits: end-to-end latency counts
from here. A source that falls behind writes when the event was due, so that its own delay is not hidden."""

FORWARDED = (TRACEPARENT, SOURCE_MS)
"""What a score and an alert take over from their event."""

_MOST_DIGITS = 15


def source_header(source_ms: int) -> tuple[str, bytes]:
    """The header that says when the event was ready."""
    return SOURCE_MS, b"%d" % source_ms


def source_ms(headers: Headers) -> int | None:
    """When the source had the event ready; None if no header says so, or not in digits."""
    for name, value in headers:
        if name == SOURCE_MS:
            # The header comes from outside: a foreign value must not raise, nor become a huge integer.
            return int(value) if value is not None and value.isdigit() and len(value) <= _MOST_DIGITS else None
    return None


def forwarded(headers: Headers) -> list[tuple[str, bytes]]:
    """The headers of an event that its outputs carry on."""
    return [(name, value) for name, value in headers if name in FORWARDED]
