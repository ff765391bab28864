"""Drop the state of partitions, so that it is rebuilt from the log."""

from __future__ import annotations

from typing import Annotated

import typer

from stream.cli.context import JsonOption, print_json

_OWNER = "state rebuild"
"""Claims the partitions in place of a worker, so that one that runs finds out and writes no row meanwhile."""

app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def state() -> None:
    """Look after the state that workers keep in Redis."""


@app.command()
def rebuild(
    ctx: typer.Context,
    partition: Annotated[
        list[int] | None, typer.Option(min=0, help="Only this partition; repeatable. Default: all.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: JsonOption = False,
) -> None:
    """Drop the rows and the checkpoint of partitions. The next worker that gets one rebuilds it from the log.

    Stop the workers first: one that runs finds that it owns the partition no more and starts it over by itself.
    What is rebuilt is what the log still holds, at most the feature horizon (state.horizon_days). Events and
    scores in Kafka are not touched, and nothing is scored again.

    \b
    Examples:
      riskstream state rebuild --partition 3
      riskstream state rebuild --yes
    """
    from stream.app import load_domain, open_store
    from stream.cli.connection import admin_of, connect
    from stream.cli.settings import settings_from
    from stream.clock import SystemClock
    from stream.errors import ConfigError
    from stream.topics import partition_counts

    settings = settings_from(ctx)
    with admin_of(connect(settings)) as admin:
        count = partition_counts(admin, settings)[settings.topics.transactions]
    chosen = sorted(set(partition)) if partition else list(range(count))
    if chosen[-1] >= count:
        raise ConfigError(
            f"--partition {chosen[-1]}: {settings.topics.transactions} has the partitions 0 to {count - 1}"
        )
    names = ", ".join(map(str, chosen))
    if not yes:
        typer.confirm(f"Drop the state of partitions {names} in namespace {settings.state_namespace}?", abort=True)
    store = open_store(settings, load_domain(settings))
    try:
        now_ms = SystemClock().now_ms()
        dropped = {number: store.clear(number, store.claim(number, _OWNER, now_ms)) for number in chosen}
    finally:
        store.close()
    if json:
        print_json({"namespace": settings.state_namespace, "dropped_keys": dropped})
    else:
        print(f"dropped {sum(dropped.values()):,} keys of partitions {names}; the next worker rebuilds them")
