"""Create the five topics, or check those that exist."""

from __future__ import annotations

from typing import Annotated

import typer

from stream.cli.context import JsonOption, coloured, print_json, print_table

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def topics() -> None:
    """Create the five topics, or check those that exist."""


@app.command()
def create(
    ctx: typer.Context,
    partitions: Annotated[int, typer.Option(min=1, help="Of every topic: how many workers can share the work.")] = 4,
    replication_factor: Annotated[int, typer.Option(min=1, help="Copies of each partition; 3 in production.")] = 1,
    retention_days: Annotated[
        int | None, typer.Option(min=1, help="How long records are kept; default: state.horizon_days and 5 more.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Create the topics transactions, labels, risk-scores, alerts and transactions.dlq.

    Their names are settings (topics.*). All get the same number of partitions, because an account's events,
    labels and scores must meet on one worker. What exists is left as it is, so the command can be repeated;
    where an existing topic has another number of partitions, nothing is made and the exit code is 12.

    The number of partitions is for good: adding some later would move accounts away from their state.

    \b
    Examples:
      riskstream topics create
      riskstream topics create --partitions 24 --replication-factor 3 --retention-days 60
    """
    from stream.cli.connection import admin_of, connect
    from stream.cli.settings import settings_from
    from stream.topics import create_topics, plan_topics

    settings = settings_from(ctx)
    plans = plan_topics(
        settings, partitions=partitions, replication_factor=replication_factor, retention_days=retention_days
    )
    with admin_of(connect(settings)) as admin:
        outcomes = create_topics(admin, plans)
    if json:
        keys = ("name", "created", "partitions", "replication_factor", "warnings")
        print_json([{key: getattr(outcome, key) for key in keys} for outcome in outcomes])
        return
    print_table(
        [
            (outcome.name, f"{outcome.partitions} partitions", "created" if outcome.created else "exists")
            for outcome in outcomes
        ]
    )
    for outcome in outcomes:
        for warning in outcome.warnings:
            print(f"{coloured('warning:', 'warning')} topic {outcome.name} {warning}")


@app.command()
def check(ctx: typer.Context, json: JsonOption = False) -> None:
    """Check that all five topics exist and the inputs fit together. Exit code 12 if not.

    \b
    Example:
      riskstream topics check
    """
    from stream.cli.connection import admin_of, connect
    from stream.cli.settings import settings_from
    from stream.topics import partition_counts

    settings = settings_from(ctx)
    with admin_of(connect(settings)) as admin:
        counts = partition_counts(admin, settings)
    if json:
        print_json(counts)
    else:
        print_table([(name, f"{count} partitions") for name, count in counts.items()])
