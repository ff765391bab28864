"""What `simulate` and `replay` share: publishing with progress, and a summary at the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from stream.cli.connection import admin_of, connect
from stream.cli.context import print_json
from stream.cli.interrupt import stop_on_signals
from stream.cli.progress import Steps
from stream.clock import SystemClock
from stream.config import Settings
from stream.events.moments import moment_text
from stream.publish import Published, Publisher
from stream.topics import partition_counts


@dataclass(frozen=True, slots=True)
class Run:
    """A publisher, the wish to stop, and who is told."""

    publisher: Publisher
    stop: threading.Event
    steps: Steps
    total: int | None

    def tell(self, published: Published) -> None:
        behind = f", {published.behind_ms / 1000:.1f} s behind its pace" if published.behind_ms > 1_000 else ""
        more = f", {published.events_per_s:,.0f}/s, up to {moment_text(published.event_ms)[:16]}{behind}"
        self.steps.show("events", published.events, self.total, more)


@contextmanager
def publishing(settings: Settings, total: int | None) -> Iterator[Run]:
    """Topics checked, a producer, progress, and a stop at Ctrl-C."""
    client = connect(settings)
    with admin_of(client) as admin:
        partition_counts(admin, settings)
    producer = client.plain_producer()
    try:
        with stop_on_signals() as stop, Steps() as steps:
            yield Run(Publisher(producer, settings.topics, SystemClock()), stop, steps, total)
    finally:
        producer.close()


def summarise(published: Published, json: bool) -> None:
    """The end of a command that published."""
    document = {
        "events": published.events,
        "labels": published.labels,
        "labels_not_due": published.labels_not_due,
        "duplicates": published.duplicates,
        "malformed": published.malformed,
        "seconds": round(published.seconds, 3),
        "events_per_s": round(published.events_per_s, 1),
        "last_event": moment_text(published.event_ms),
    }
    if json:
        print_json(document)
        return
    print(
        f"published {published.events:,} events and {published.labels:,} labels in {published.seconds:,.1f} s "
        f"({published.events_per_s:,.0f}/s), up to {moment_text(published.event_ms)}"
    )
    if published.duplicates or published.malformed:
        print(f"among them {published.duplicates:,} repeated and {published.malformed:,} malformed ones")
    if published.labels_not_due:
        print(f"{published.labels_not_due:,} labels become known only after the last event and were not published")
