"""Show the newest alerts, and new ones as they come."""

from __future__ import annotations

import itertools
from typing import Annotated, Any

import typer

from stream.alerts import follow, headline, newest, parsed, reasons
from stream.cli.context import JsonOption, coloured, print_json

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def alerts(
    ctx: typer.Context,
    wait: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones until Ctrl-C.")] = False,
    last: Annotated[int, typer.Option(min=0, help="How many existing ones to show first.")] = 10,
    most: Annotated[int | None, typer.Option("--max", min=1, help="End after so many.")] = None,
    json: JsonOption = False,
) -> None:
    """Show the newest alerts, and new ones as they come.

    Each with its decision, score, amount and the reasons in words. Accounts are masked; --json prints the
    alerts' records as they are, one per line, account and all. Committed alerts only. Reads beside the
    consumers of the topic, and takes nothing away from them.

    \b
    Examples:
      riskstream alerts --follow
      riskstream alerts --follow --last 0 --max 1 --json     wait for the next alert
    """
    from stream.cli.connection import admin_of, connect, reader_of
    from stream.cli.interrupt import stop_on_signals
    from stream.cli.settings import settings_from
    from stream.topics import partition_counts

    settings = settings_from(ctx)
    topic = settings.topics.alerts
    client = connect(settings)
    with admin_of(client) as admin:
        partitions = partition_counts(admin, settings)[topic]
    with reader_of(client) as reader, stop_on_signals() as stop:
        found, positions = newest(reader, topic, partitions, last)
        records = itertools.chain(found, follow(reader, positions, stop) if wait else ())
        readable = (alert for alert in map(parsed, records) if alert is not None)
        for alert in itertools.islice(readable, most):
            _show(alert, json)
    if not (json or wait or found):
        print("no alerts yet")


def _show(alert: dict[str, Any], json: bool) -> None:
    if json:
        print_json(alert)
        return
    decision, rest = headline(alert)
    kind = "error" if decision == "DECLINE" else "warning"
    print(f"{str(alert.get('scored_at'))[11:23]}  {coloured(decision.ljust(7), kind)}  {rest}")
    for line in reasons(alert):
        print(f"              {line}")
    print(flush=True)
