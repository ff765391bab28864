"""Run a worker: score events until it is told to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def run(
    ctx: typer.Context,
    bundle: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Model bundle (scoring.bundle); without one: rules only.")
    ] = None,
    worker_id: Annotated[
        str | None, typer.Option(help="Stable name of this worker's slot (kafka.worker_id); never shared by two.")
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Port of /metrics, /livez, /readyz (http.port); 0: a free one.")
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Print the time of each stage at the end.")] = False,
) -> None:
    """Run a worker: score events until it is told to stop.

    It joins the consumer group, restores the state of the partitions that it gets, and publishes a score for
    every event and an alert for every suspicious one. Start several with different --worker-id to share the
    work. SIGTERM or Ctrl-C: it finishes the turn, commits, flushes, leaves the group and exits with 0.

    Logs go to stderr: JSON lines, or readable ones on a terminal (log.format).

    \b
    Exit codes, beside 0:
      1   Kafka or Redis did not answer at the start
      2   a setting is wrong
      10  fenced: another worker runs with this --worker-id
      11  Kafka or Redis refuses the credentials or a right
      12  a topic is missing, or the inputs' partition counts differ
      13  the group's offsets were moved back behind the state
      14  retention dropped events that the state still needs
      15  a dead letter could not be written
      16  the bundle was refused

    \b
    Examples:
      riskstream run --bundle bundles/payments --worker-id worker-0
      riskstream run --worker-id worker-1 --set kafka.group=fraud --http-port 9100
    """
    from stream.app import run_worker
    from stream.cli.settings import settings_from
    from stream.logs import configure_logs

    settings = settings_from(
        ctx,
        scoring__bundle=str(bundle) if bundle is not None else None,
        kafka__worker_id=worker_id,
        http__port=http_port,
    )
    configure_logs(settings.log, worker=settings.kafka.worker_id)
    raise typer.Exit(run_worker(settings, profile=profile))
