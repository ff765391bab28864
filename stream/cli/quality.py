"""Measure the model in production: precision and recall from labels, calibration, drift."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stream.cli.context import JsonOption, print_json, print_table

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def quality(
    ctx: typer.Context,
    bundle: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Bundle whose reference drift is measured against; repeatable. Else scoring.bundle."
        ),
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Port of /metrics, /livez, /readyz (http.port); 0: a free one.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Read what is there, print the figures, end.")] = False,
    json: JsonOption = False,
) -> None:
    """Measure the model in production: precision and recall from labels, calibration, drift.

    Joins the labels to the scores by account and event id, by model and window of event time (1d, 7d, 30d). An
    event counts as genuine only when it is older than quality.maturity_days; frauds whose labels take even
    longer are estimated. Drift is the PSI of the probability and of the top features against the reference in
    the bundle; features need workers with records.features=sample.

    It reads beside the workers, in no group; nothing is committed or written but quality.checkpoint. One
    process serves all workers.

    \b
    Examples:
      riskstream quality --bundle bundles/payments --http-port 9101
      riskstream quality --once --set quality.maturity_days=7
      riskstream quality --once --json
    """
    from stream.app import run_quality
    from stream.cli.settings import settings_from
    from stream.logs import configure_logs

    settings = settings_from(ctx, http__port=http_port)
    folders = bundle or ([settings.scoring.bundle] if settings.scoring.bundle is not None else [])
    configure_logs(settings.log, worker="quality")
    found = run_quality(settings, folders, once=once or json)
    if found is None:
        return
    if json:
        print_json(found.as_json())
    else:
        _print(found)


def _print(found: Any) -> None:
    if not found.quality:
        print("no event is old enough to be judged (quality.maturity_days)")
    measures = ("precision", "recall", "money_recall", "false_positive_rate", "alert_rate", "calibration")
    rows = [
        (
            *(model, window, f"{of.counts['scored']:,.0f}", f"{of.counts['fraud']:,.1f}"),
            *(f"{of.ratios[name]:.4f}" if name in of.ratios else "-" for name in measures),
        )
        for (model, window), of in sorted(found.quality.items())
    ]
    if rows:
        print_table(rows, ("model", "window", "events", "frauds", *(name.replace("_", " ") for name in measures)))
    drifted = [
        (model, window, column, f"{of.events[column]:,}", f"{value:.3f}")
        for (model, window), of in sorted(found.drift.items())
        for column, value in of.psi.items()
    ]
    if drifted:
        print()
        print_table(drifted, ("model", "window", "drift of", "events", "psi"))
