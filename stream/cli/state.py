"""Build a new version's state beside the running one; drop the state of partitions, so that it is rebuilt."""

from __future__ import annotations

from typing import Annotated

import typer

from stream.cli.context import JsonOption, print_json, print_table

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


@app.command()
def build(
    ctx: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until SIGTERM, or until workers took over.")] = False,
    quick_s: Annotated[
        float, typer.Option(min=0.1, help="End when a round over all partitions took less; not with --follow.")
    ] = 5.0,
    json: JsonOption = False,
) -> None:
    """Build the state of these settings in the background, while the group's workers go on with theirs.

    A new spec_id (other features), redis.namespace or redis.key_secret is another state, and begins empty: workers
    would rebuild it before they score. Run this first, with the new version and its settings. It folds the log over
    the horizon, up to what the group has committed, and nothing is scored. Then replace the workers: they find the
    state, replay what came since, and no score is cold.

    Where the log no longer holds its beginning, lifelong features lack what was before: it says so, and the scores
    from this state are flagged cold over the horizon. A state that workers serve from is refused.

    \b
    Examples:
      riskstream state build
      riskstream --set redis.namespace=fraud-2 state build --follow
    """
    from stream.app import build_state, connect, load_domain, open_store
    from stream.cli.interrupt import stop_on_signals
    from stream.cli.progress import Steps
    from stream.cli.settings import settings_from
    from stream.clock import SystemClock
    from stream.events.moments import moment_text
    from stream.logs import configure_logs

    settings = settings_from(ctx)
    configure_logs(settings.log, worker="state-build")
    domain = load_domain(settings)
    store = open_store(settings, domain)
    try:
        with stop_on_signals() as stop, Steps() as steps:
            positions, cold_until_ms = build_state(
                settings,
                connect(settings),
                store,
                domain,
                SystemClock(),
                stop,
                follow=follow,
                quick_s=quick_s,
                tell=lambda number, left: steps.show(f"partition {number}, events left", left, None),
            )
    finally:
        store.close()
    cold_until = moment_text(cold_until_ms) if cold_until_ms else None
    if json:
        found = {number: None if w is None else w._asdict() for number, w in positions.items()}
        print_json(
            {
                "namespace": settings.state_namespace,
                "spec_id": domain.spec_id,
                "checkpoints": found,
                "cold_until": cold_until,
            }
        )
    else:
        print_table([(f"partition {n}", *(f"{name} {at:,}" for name, at in (w._asdict() if w else {}).items()))
                     for n, w in positions.items()])  # fmt: skip
        print(f"state of spec_id {domain.spec_id} in namespace {settings.state_namespace}: built up to here")
        if cold_until:
            print(f"the log lacks its beginning: scores from this state are flagged cold until {cold_until}")
