"""Virtual time for the in-memory broker, and silence."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import structlog

from stream.clock import ManualClock
from stream.engine import pipeline
from stream.events.decoder import Decoder
from stream.kafka.memory import broker, client
from tests.crash.cluster import VirtualTime
from tests.crash.traffic import START_MS

_known_decoder = functools.cache(Decoder)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[ManualClock]:
    """One clock per test, for the workers, the broker and whoever waits for it."""
    monkeypatch.setattr(broker, "time", VirtualTime())
    monkeypatch.setattr(client, "time", VirtualTime())
    # It keeps nothing between two calls, and to compile its schema takes longer than a worker lives here.
    monkeypatch.setattr(pipeline, "Decoder", _known_decoder)
    with structlog.testing.capture_logs():
        yield ManualClock(START_MS)
