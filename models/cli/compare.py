"""Compare two bundles on a history."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.cli.evaluate import tell
from models.cli.options import (
    AccountsOption,
    DelayOption,
    ExcludeOption,
    FraudRateOption,
    PageOption,
    PartitionsOption,
    ReadUntilOption,
    SegmentOption,
    SimulatedOption,
    StartOption,
)
from models.cli.source import Source, command_text, moment
from stream.cli.context import JsonOption
from stream.cli.progress import Steps

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def compare(
    ctx: typer.Context,
    first: Annotated[Path, typer.Argument(metavar="A", help="A bundle's folder, such as the champion's.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another's.")],
    file: Annotated[Path | None, typer.Option("--history", metavar="FILE", help="History: CSV or Parquet.")] = None,
    mapping: Annotated[Path | None, typer.Option(metavar="M", help="Which column of FILE is what.")] = None,
    simulated: SimulatedOption = None,
    accounts: AccountsOption = 500,
    fraud_rate: FraudRateOption = 0.01,
    start: StartOption = None,
    label_delay: DelayOption = None,
    since: Annotated[str | None, typer.Option("--from", metavar="TIME", help="Compare events from then on.")] = None,
    to: ReadUntilOption = None,
    exclude_compromised: ExcludeOption = False,
    out: PageOption = Path("comparison.html"),
    segment: SegmentOption = None,
    seed: Annotated[int, typer.Option(help="Of the simulation.")] = 0,
    partitions: PartitionsOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Compare two bundles on a history, with the interval of their difference.

    Both score the same events. Choose --from after both were trained; a bundle that has seen part of the period
    is pointed out.

    \b
    Examples:
      riskstream compare bundles/v1 bundles/v2 --history history.csv --mapping mapping.yaml --from 2020-07-01
    """
    from models.evaluation import evaluate_bundles
    from models.report.page import write
    from stream.app import load_domain
    from stream.cli.settings import settings_from
    from stream.scoring.bundle import verify

    settings = settings_from(ctx)
    domain = load_domain(settings)
    bundles = [verify(folder, domain=domain) for folder in (first, second)]
    source = Source(domain, file, mapping, simulated, accounts, fraud_rate, seed, start, label_delay)
    until_ms = 2**62 if to is None else moment(to, "--to")
    with Steps() as steps:
        dataset, delay_ms = source.replayed(
            settings, steps, until_ms=until_ms, partitions=partitions, segments=segment or ()
        )
        document = evaluate_bundles(
            dataset,
            bundles,
            from_ms=0 if since is None else moment(since, "--from"),
            to_ms=until_ms,
            label_delay_ms=delay_ms,
            exclude_compromised=exclude_compromised,
            command=command_text(),
        )
    write(document, out)
    tell(document, out, as_json=as_json)
