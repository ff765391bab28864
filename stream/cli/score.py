"""Score a history file with the engine itself: no Kafka, no Redis."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stream.cli.context import JsonOption
from stream.cli.spans import Labels, span_ms

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def score(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV or Parquet, in order of time.")],
    mapping: Annotated[Path, typer.Option(metavar="M.yaml", help="Which column of the file is what.")],
    out: Annotated[Path, typer.Option(metavar="OUT.parquet", help="One row per scored event.")],
    bundle: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Model bundle (scoring.bundle); without one: rules only.")
    ] = None,
    partitions: Annotated[int, typer.Option(min=1, help="As if the topic had so many.")] = 1,
    label_delay: Annotated[
        str | None, typer.Option(metavar="7d", help="Event time to known verdict; default: the mapping's.")
    ] = None,
    labels: Annotated[Labels, typer.Option(help="Confirmed frauds alone, every verdict, or none.")] = Labels.FRAUD,
    label_positions: Annotated[
        Path | None,
        typer.Option(metavar="SCORES.parquet", help="Learn labels where this run on Kafka did (audit --out)."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many events.")] = None,
    json: JsonOption = False,
) -> None:
    """Score a history file with the engine itself: no Kafka, no Redis.

    The same feature code, model and policy as a worker's, over in-memory ports. Each label becomes known
    before the first event that is not older than it, as with `riskstream replay`. The table has the origin
    that each event would have in Kafka, its probability, score, band, decision, flags, the model's parts, and
    the labels offset. A repeat of one of an account's last 64 events has no row.

    With --label-positions, labels are learnt exactly where a run on Kafka learnt them, so the two runs'
    scores can be compared event by event.

    \b
    Examples:
      riskstream score payments.csv --mapping payments.yaml --bundle bundles/v1 --out scores.parquet
      riskstream score p.csv --mapping p.yaml --bundle b --out o.parquet --partitions 4 --label-positions k.parquet
    """
    from stream.cli.scoring import score_file
    from stream.cli.settings import settings_from

    score_file(
        settings_from(ctx, scoring__bundle=str(bundle) if bundle is not None else None),
        file,
        mapping,
        out,
        partitions=partitions,
        label_delay_ms=span_ms(label_delay),
        verdicts=labels.value,
        label_positions=label_positions,
        limit=limit,
        json=json,
    )
