"""Publish a history file: its events, and its labels when they became known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stream.cli.context import JsonOption
from stream.cli.spans import Labels, span_ms

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def replay(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV or Parquet, in order of time.")],
    mapping: Annotated[Path, typer.Option(metavar="M.yaml", help="Which column of the file is what.")],
    speed: Annotated[
        str, typer.Option(metavar="X|max", help="Seconds of history per second; max: as fast as it goes.")
    ] = "max",
    label_delay: Annotated[
        str | None, typer.Option(metavar="7d", help="Event time to known verdict; default: the mapping's.")
    ] = None,
    labels: Annotated[Labels, typer.Option(help="Confirmed frauds alone, every verdict, or none.")] = Labels.FRAUD,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many events.")] = None,
    json: JsonOption = False,
) -> None:
    """Publish a history file as events, and its labels when they became known.

    The mapping says which column is what (docs, and examples/sparkov.yaml). Each label goes to the labels
    topic before the first event that is not older than the moment at which its verdict was known. Ctrl-C stops
    in good order, with exit code 130.

    \b
    Examples:
      riskstream replay payments.csv --mapping payments.yaml --speed 3600
      riskstream replay payments.parquet --mapping payments.yaml --label-delay 7d --json
    """
    from stream.cli.replaying import publish_history
    from stream.cli.settings import settings_from

    publish_history(
        settings_from(ctx),
        file,
        mapping,
        speed=_speed(speed),
        label_delay_ms=span_ms(label_delay),
        verdicts=labels.value,
        limit=limit,
        json=json,
    )


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text.removesuffix("x"))
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise typer.BadParameter("write a number above 0, such as 60, or max", param_hint="--speed")
    return speed
