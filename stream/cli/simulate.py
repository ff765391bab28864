"""Publish simulated payments with frauds, or write them to a file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from stream.cli.context import JsonOption

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_DAY_MS = 86_400_000


@app.command()
def simulate(
    ctx: typer.Context,
    rate: Annotated[float, typer.Option(min=0.001, help="Events per second.")] = 100.0,
    accounts: Annotated[int, typer.Option(min=1, help="Customers; each pays about three times a day.")] = 2_000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same people and payments.")] = 7,
    events: Annotated[int | None, typer.Option(min=1, help="How many; without it: until Ctrl-C.")] = None,
    fraud_rate: Annotated[float, typer.Option(min=0.0, max=0.5, help="Share of fraudulent payments.")] = 0.01,
    scenario: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=WEIGHT", help="Mix of the frauds; only those named happen. Repeatable."),
    ] = None,
    malformed: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of spoilt messages.")] = 0.002,
    duplicates: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of repeated messages.")] = 0.002,
    days: Annotated[int, typer.Option(min=1, help="How many days ago the payments begin.")] = 60,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.parquet", help="Write a history to this file and its mapping beside it; no Kafka."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Publish simulated payments with frauds and their labels, or write them to a file.

    People with habits pay at shops near and far, and six kinds of fraud happen to them: stolen cards, taken
    over accounts, card testing, large amounts, compromised terminals, mules. Labels follow after days. The
    payments' own clock runs fast: it begins --days ago, or after the newest event that the topic holds, so
    that a second run goes on where the first one ended. Ctrl-C ends it, with exit code 0.

    With --out the payments of --days days, or --events of them, go to a Parquet file instead, ready for `riskstream
    train` and `riskstream replay`; the attribute `scenario` says which fraud a payment is.

    Scenarios: compromised_terminal, stolen_card, account_takeover, card_testing, large_amount, slow_mule.

    \b
    Examples:
      riskstream simulate --rate 200
      riskstream simulate --events 10000 --rate 5000 --malformed 0.05
      riskstream simulate --days 60 --out history.parquet
      riskstream simulate --scenario compromised_terminal=3 --scenario stolen_card=1 --out terminals.parquet
    """
    from stream.cli.settings import settings_from
    from stream.cli.simulating import publish_simulation, scenario_mix, write_simulation
    from stream.clock import SystemClock
    from stream.simulate.simulation import Simulation

    start_ms = Simulation.start_before(SystemClock().now_ms(), days)
    simulation = Simulation(
        accounts=accounts, seed=seed, fraud_rate=fraud_rate, start_ms=start_ms, mix=scenario_mix(scenario)
    )
    if out is not None:
        if events is not None and events > simulation.events_per_day * days:
            # That many take longer: they begin earlier.
            days = math.ceil(events / simulation.events_per_day) + 1
            simulation.start_ms = Simulation.start_before(SystemClock().now_ms(), days)
        until_ms = None if events is not None else simulation.start_ms + days * _DAY_MS
        write_simulation(simulation, out, events=events, until_ms=until_ms, json=json)
        return
    publish_simulation(
        settings_from(ctx),
        simulation,
        rate_per_s=rate,
        events=events,
        duplicates=duplicates,
        malformed=malformed,
        json=json,
    )
