"""What `replay` does."""

from __future__ import annotations

from pathlib import Path

import typer

from stream.app import load_domain
from stream.cli.context import note
from stream.cli.history import History
from stream.cli.publishing import publishing, summarise
from stream.clock import SystemClock
from stream.config import Settings
from stream.publish import Verdicts, replay

# A label that becomes known within its own batch takes a slower path: a batch should span less than the delay.
_BATCH_ROWS = 1_024


def publish_history(
    settings: Settings,
    file: Path,
    mapping: Path,
    *,
    speed: float | None,
    label_delay_ms: int | None,
    verdicts: Verdicts,
    limit: int | None,
    json: bool,
) -> None:
    """A history file onto Kafka. ConfigError for a file or mapping that does not fit."""
    domain = load_domain(settings)
    history = History(domain, file, mapping, label_delay_ms=label_delay_ms, limit=limit, batch_rows=_BATCH_ROWS)
    with publishing(settings, history.total) as run:
        published = replay(
            history,
            run.publisher,
            SystemClock(),
            run.stop,
            account_field=domain.account_field,
            speed=speed,
            verdicts=verdicts,
            tell=run.tell,
        )
        stopped = run.stop.is_set()
    for line in history.lines():
        note(line)
    summarise(published, json)
    if stopped:
        raise typer.Exit(130)
