"""Evaluate as the field does: train, wait the label delay, test, moved through time, beside baselines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from models.cli.options import (
    AccountsOption,
    AnomalyOption,
    ArchitectureOption,
    DelayOption,
    EnsembleOption,
    ExcludeOption,
    FileArgument,
    FraudRateOption,
    MappingOption,
    PageOption,
    PartitionsOption,
    PretrainOption,
    ReadUntilOption,
    SegmentOption,
    SimulatedOption,
    StartOption,
    ThreadsOption,
)
from models.cli.source import Source, command_text, figures_text, moment
from stream.cli.context import JsonOption, note, print_json, print_table
from stream.cli.progress import Steps
from stream.errors import ConfigError

app = typer.Typer(add_completion=False, rich_markup_mode=None)

SHOWN = {
    "average_precision": "average precision",
    "auc": "AUC",
    "card_precision_100": "card prec. 100/day",
    "recall_at_fpr_0_1pct": "recall at FPR .1 %",
    "recall_at_100_alerts": "recall 100 alerts/day",
    "money_recall_at_review": "money recall",
    "ece": "ECE",
}


@app.command()
def evaluate(
    ctx: typer.Context,
    file: FileArgument = None,
    mapping: MappingOption = None,
    simulated: SimulatedOption = None,
    accounts: AccountsOption = 500,
    fraud_rate: FraudRateOption = 0.01,
    start: StartOption = None,
    folds: Annotated[int, typer.Option(min=1, help="How many; the last ends with the history.")] = 4,
    train: Annotated[
        str | None, typer.Option(metavar="SPAN", help="Training period, such as 60d; else all that came before.")
    ] = None,
    test: Annotated[str, typer.Option(metavar="SPAN", help="Test period of each fold.")] = "7d",
    label_delay: DelayOption = None,
    exclude_compromised: ExcludeOption = False,
    baselines: Annotated[
        str, typer.Option(help="lightgbm, random-forest, logistic-regression, with commas between; or none.")
    ] = "lightgbm,random-forest,logistic-regression",
    bundle: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Train nothing: how does this bundle do on the history?")
    ] = None,
    since: Annotated[str | None, typer.Option("--from", metavar="TIME", help="With --bundle: test from then.")] = None,
    to: ReadUntilOption = None,
    out: PageOption = Path("report.html"),
    architecture: ArchitectureOption = "lstm-mlp",
    ensemble: EnsembleOption = 1,
    anomaly: AnomalyOption = False,
    pretrain: PretrainOption = 0,
    segment: SegmentOption = None,
    seed: Annotated[int, typer.Option(help="Of simulation, nets and baselines.")] = 0,
    partitions: PartitionsOption = 1,
    threads: ThreadsOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Evaluate as the field does: train, wait the label delay, test, moved through time, beside baselines.

    Each fold trains on what was known when its test period begins, and tests on events that chose nothing.
    Baselines read the same features. Writes an HTML report and its JSON. The history is replayed once.

    \b
    Examples:
      riskstream evaluate history.csv --mapping mapping.yaml --folds 4 --test 14d --label-delay 7d
      riskstream evaluate history.csv --mapping mapping.yaml --bundle bundles/v1 --from 2020-07-01
    """
    from models.nets.risknet import NetOptions
    from models.prequential import FoldOptions
    from models.report.page import write
    from models.train import TrainOptions
    from stream.app import load_domain
    from stream.cli.settings import settings_from
    from stream.features.spec import window_ms

    settings = settings_from(ctx)
    domain = load_domain(settings)
    source = Source(domain, file, mapping, simulated, accounts, fraud_rate, seed, start, label_delay)
    until_ms = 2**62 if to is None else moment(to, "--to")
    if since is not None and bundle is None:
        raise ConfigError("--from goes with --bundle; folds end with the history: choose --folds, --train and --test")
    names = () if baselines == "none" else tuple(name.strip() for name in baselines.split(","))
    # Before the history is read, for that may take long.
    fold_options = FoldOptions(
        window_ms(test), folds, None if train is None else window_ms(train), exclude_compromised, names
    )
    options = TrainOptions(
        until_ms=0,
        label_delay_ms=0,
        alert_rate=domain.alert_rate,
        seed=seed,
        threads=threads,
        ensemble=ensemble,
        anomaly=anomaly,
        pretrain_epochs=pretrain,
        net=NetOptions(architecture=architecture),
    )
    verified = None if bundle is None else _verified(bundle, domain)
    with Steps() as steps:
        dataset, delay_ms = source.replayed(
            settings, steps, until_ms=until_ms, partitions=partitions, segments=segment or ()
        )
        if verified is not None:
            from models.evaluation import evaluate_bundles

            document = evaluate_bundles(
                dataset,
                [verified],
                from_ms=0 if since is None else moment(since, "--from"),
                to_ms=until_ms,
                label_delay_ms=delay_ms,
                exclude_compromised=exclude_compromised,
                command=command_text(),
            )
        else:
            from models.evaluation import evaluate_folds

            document = evaluate_folds(
                dataset,
                fold_options,
                replace(options, label_delay_ms=delay_ms),
                lambda p: steps.show(p.stage, p.done, p.total, figures_text(p.figures)),
                command=command_text(),
            )
    write(document, out)
    tell(document, out, as_json=as_json)


def _verified(folder: Path, domain: Any) -> Any:
    from stream.scoring.bundle import verify

    return verify(folder, domain=domain)


def tell(document: dict[str, Any], out: Path, *, as_json: bool) -> None:
    """The main figures as a table, warnings first; or the document."""
    if as_json:
        print_json(document)
        return
    for warning in document["warnings"]:
        note(f"warning: {warning}")
    rows = [
        [name, *("-" if model["mean"][figure] is None else f"{model['mean'][figure]:.4f}" for figure in SHOWN)]
        for name, model in document["models"].items()
    ]
    print_table(rows, header=["model", *SHOWN.values()])
    note(f"{document['summary']}\nreport: {out}, as JSON: {out.with_suffix('.json')}")
