"""See everything work on this machine: broker, Redis, a trained model, two workers, simulated payments."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from stream.cli.context import end_with, print_json

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def demo(
    seconds: Annotated[
        float | None,
        typer.Option(min=1.0, envvar="DEMO_SECONDS", help="Seconds of traffic; without it: until Ctrl-C."),
    ] = None,
    kafka: Annotated[str, typer.Option(help="embedded (no Java) or apache (Java and Maven).")] = "embedded",
    rate: Annotated[float, typer.Option(min=1.0, max=20_000.0, help="Payments per second.")] = 200.0,
) -> None:
    """See everything work on this machine: broker, Redis, a trained model, two workers, simulated payments.

    Starts a Kafka and a Redis of its own on free loopback ports, trains a model on simulated payments (the
    first time; about a minute), starts two workers as processes, and shows what they do: events per second,
    latency from the payment to the visible score, score bands, the last alerts with their reasons, and
    whether in = scored + duplicates + dead. Without a terminal it prints plain lines.

    At the end (Ctrl-C, SIGTERM or --seconds) everything is scored, audited and taken down; the last line is
    one JSON object. No other setting has a say, and nothing stays but the model, in the cache folder.

    \b
    Exit codes: 0 events were scored, alerts were raised and the audit holds; 1 not so.

    \b
    Examples:
      riskstream demo
      riskstream demo --seconds 60 --kafka apache
    """
    from stream.cli.interrupt import stop_on_signals
    from stream.demo.plan import Plan
    from stream.demo.runner import run_demo
    from stream.errors import ConfigError
    from stream.stack import KAFKA_KINDS

    if kafka not in KAFKA_KINDS:
        raise ConfigError(f"--kafka {kafka}: allowed: {', '.join(KAFKA_KINDS)}")
    with stop_on_signals() as stop:
        plan = Plan(rate_per_s=rate)
        result = run_demo(plan, kafka=kafka, seconds=seconds, terminal=sys.stdout.isatty(), stop=stop)
    print_json(result.document)
    end_with(result.ok)
