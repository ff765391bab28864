"""Train a model on a history and write its bundle."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from models.cli.options import (
    AccountsOption,
    AnomalyOption,
    ArchitectureOption,
    DelayOption,
    EnsembleOption,
    FileArgument,
    FraudRateOption,
    MappingOption,
    PartitionsOption,
    PretrainOption,
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


@app.command()
def train(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the bundle; must not exist.")],
    file: FileArgument = None,
    mapping: MappingOption = None,
    simulated: SimulatedOption = None,
    accounts: AccountsOption = 500,
    fraud_rate: FraudRateOption = 0.01,
    start: StartOption = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Use what was known by then (RFC 3339 or a date); else all.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="Learn from events since then; else from all.")
    ] = None,
    label_delay: DelayOption = None,
    alert_rate: Annotated[
        float | None, typer.Option(help="Share of events to review; the domain's by default.")
    ] = None,
    architecture: ArchitectureOption = "lstm-mlp",
    ensemble: EnsembleOption = 1,
    anomaly: AnomalyOption = False,
    pretrain: PretrainOption = 0,
    refit: Annotated[
        bool, typer.Option(help="At the end train again on all that is known, validation included.")
    ] = True,
    prune: Annotated[
        float,
        typer.Option(min=0.0, max=0.9, metavar="SHARE", help="Take hidden units out: faster, see the card."),
    ] = 0.0,
    name: Annotated[str | None, typer.Option(help="Name in the bundle; the domain's by default.")] = None,
    version: Annotated[str | None, typer.Option(help="Version in the bundle; the time of training by default.")] = None,
    review_by: Annotated[
        str | None, typer.Option(metavar="DATE", help="When the model is due for review; else in 90 days.")
    ] = None,
    segment: SegmentOption = None,
    seed: Annotated[int, typer.Option(help="Of simulation, sampling and net: the same gives the same.")] = 0,
    partitions: PartitionsOption = 1,
    threads: ThreadsOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Train a model on a history and write its bundle.

    The history is replayed through the feature code that serves, each label taking part from the moment it
    became known. Split by time: the last fifth before --until validates (early stopping, calibration,
    thresholds). The bundle verifies before its folder appears; report.html in it is the model card. Interrupted,
    the same command goes on where it stopped.

    \b
    Examples:
      riskstream train history.csv --mapping mapping.yaml --until 2020-07-01 --label-delay 7d --out bundles/v1
      riskstream train --simulated 60000 --out bundles/demo
    """
    from models.card import card_files
    from models.export import export_bundle
    from models.nets.risknet import NetOptions
    from models.train import TrainOptions
    from models.train import train as fit
    from stream.app import load_domain
    from stream.cli.settings import settings_from
    from stream.clock import SystemClock

    settings = settings_from(ctx)
    domain = load_domain(settings)
    clock = SystemClock()
    if out.exists():
        raise ConfigError(f"--out {out}: exists already; choose another folder")
    until_ms = 2**62 if until is None else moment(until, "--until")
    # Before the history is read, for that may take long. What it decides is put in afterwards.
    options = TrainOptions(
        until_ms=until_ms,
        from_ms=0 if since is None else moment(since, "--from"),
        label_delay_ms=0,
        alert_rate=domain.alert_rate if alert_rate is None else alert_rate,
        seed=seed,
        threads=threads,
        ensemble=ensemble,
        refit=refit,
        anomaly=anomaly,
        pretrain_epochs=pretrain,
        prune=prune,
        net=NetOptions(architecture=architecture),
    )
    source = Source(domain, file, mapping, simulated, accounts, fraud_rate, seed, start, label_delay)
    with Steps() as steps:
        dataset, delay_ms = source.replayed(
            settings, steps, until_ms=until_ms, partitions=partitions, segments=segment or ()
        )
        options = replace(
            options,
            until_ms=int(dataset.time_ms[-1]) + 1 if until is None else until_ms,
            label_delay_ms=delay_ms,
        )
        trained = fit(
            dataset,
            options,
            lambda p: steps.show(p.stage, p.done, p.total, figures_text(p.figures)),
            checkpoint_folder=out.with_name(f".{out.name}.checkpoints"),
        )
        stamp = datetime.fromtimestamp(clock.now_ms() / 1000, UTC).strftime("%Y%m%d-%H%M%S")
        name, version, command = name or domain.name, version or stamp, command_text()
        manifest = export_bundle(
            trained,
            domain,
            out,
            name=name,
            version=version,
            command=command,
            clock=clock,
            review_by_ms=None if review_by is None else moment(review_by, "--review-by"),
            more_files=card_files(trained, dataset, name=name, version=version, command=command),
        )
    _tell(manifest, out, as_json=as_json)


def _tell(manifest: Any, out: Path, *, as_json: bool) -> None:
    metrics = {name: value for name, value in manifest.metrics.items() if value is not None}
    if as_json:
        print_json({"bundle": str(out), "model": manifest.label, "spec_id": manifest.spec_id, "metrics": metrics})
        return
    training = manifest.training
    rows = [
        ("model", manifest.label),
        ("trained on", f"{training.train_events:,} events, {training.train_frauds:,} frauds"),
        ("validated on", f"{training.validation_events:,} events, {training.validation_frauds:,} frauds"),
        ("review from", f"{manifest.thresholds.review:.4g} ({manifest.thresholds.review_rate:.2%} of events)"),
        ("decline from", f"{manifest.thresholds.decline:.4g} ({manifest.thresholds.decline_rate:.2%} of events)"),
        *((name, f"{value:.4f}") for name, value in metrics.items()),
    ]
    print_table(rows)
    note(f"bundle written to {out}; its report is {out / 'report.html'}")
