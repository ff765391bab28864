"""Train a model on a history and write its bundle."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from stream.cli.context import JsonOption, note, print_json, print_table
from stream.cli.progress import Steps
from stream.errors import ConfigError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def train(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the bundle; must not exist.")],
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="History: CSV or Parquet.")] = None,
    mapping: Annotated[
        Path | None, typer.Option(metavar="M", help="Which column of FILE is what (examples/sparkov.yaml).")
    ] = None,
    simulated: Annotated[
        int | None, typer.Option(metavar="EVENTS", help="Instead of FILE: so many simulated payments.")
    ] = None,
    accounts: Annotated[int, typer.Option(help="Accounts of the simulated history.")] = 2_000,
    fraud_rate: Annotated[float, typer.Option(help="Fraud rate of the simulated history.")] = 0.01,
    start: Annotated[str | None, typer.Option(metavar="TIME", help="Start of the simulated history.")] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Use what was known by then (RFC 3339 or a date); else all.")
    ] = None,
    label_delay: Annotated[
        str | None, typer.Option(metavar="SPAN", help="How long a label takes, such as 7d; else the mapping's.")
    ] = None,
    alert_rate: Annotated[
        float | None, typer.Option(help="Share of events to review; the domain's by default.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the bundle; the domain's by default.")] = None,
    version: Annotated[str | None, typer.Option(help="Version in the bundle; the time of training by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of simulation, sampling and net: the same gives the same.")] = 0,
    partitions: Annotated[
        int, typer.Option(min=1, help="As many as the topic has: step features see their own partition's entities.")
    ] = 1,
    threads: Annotated[int, typer.Option(help="Torch threads; small nets gain little from more.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Train a model on a history and write its bundle.

    The history is replayed through the feature code that serves, each label taking part from the moment it
    became known. Split by time: the last fifth before --until validates (early stopping, calibration,
    thresholds). The bundle verifies before its folder appears.

    \b
    Examples:
      riskstream train history.csv --mapping mapping.yaml --until 2020-07-01 --label-delay 7d --out bundles/v1
      riskstream train --simulated 60000 --out bundles/demo
    """
    from models.export import export_bundle
    from models.history import training_set
    from models.train import TrainOptions
    from models.train import train as fit
    from stream.app import load_domain, load_rates
    from stream.cli.settings import settings_from
    from stream.clock import SystemClock

    settings = settings_from(ctx)
    domain = load_domain(settings)
    clock = SystemClock()
    if out.exists():
        raise ConfigError(f"--out {out}: exists already; choose another folder")
    with Steps() as steps:
        source = _Source(file, mapping, label_delay, domain)
        found = source.history() if file else source.simulated(simulated, accounts, fraud_rate, seed, start)
        batches, total, delay_ms = found
        until_ms = _moment(until, "--until") if until is not None else 2**62
        counted = _counted(batches, total, steps)
        rates = load_rates(settings, domain)
        dataset = training_set(counted, domain, rates, until_ms=until_ms, partitions=partitions)
        if until is None:
            until_ms = int(dataset.time_ms[-1]) + 1
        options = TrainOptions(
            until_ms=until_ms,
            label_delay_ms=delay_ms,
            alert_rate=domain.alert_rate if alert_rate is None else alert_rate,
            seed=seed,
            threads=threads,
        )
        trained = fit(dataset, options, lambda p: steps.show(p.stage, p.done, p.total, _figures(p.figures)))
        stamp = datetime.fromtimestamp(clock.now_ms() / 1000, UTC).strftime("%Y%m%d-%H%M%S")
        manifest = export_bundle(
            trained,
            domain,
            out,
            name=name or domain.name,
            version=version or stamp,
            command="riskstream " + " ".join(sys.argv[1:]),
            clock=clock,
        )
    _tell(manifest, out, as_json=as_json)


class _Source:
    """Where the events come from."""

    def __init__(self, file: Path | None, mapping: Path | None, label_delay: str | None, domain: Any) -> None:
        from stream.features.spec import window_ms
        from stream.history.batch import WireContract

        self._file, self._mapping = file, mapping
        self._delay_ms = None if label_delay is None else window_ms(label_delay)
        self._contract = WireContract.of(domain.event, domain.label, domain.time_field)

    def history(self) -> tuple[Iterable[Any], int | None, int]:
        """Batches, rows if they are known beforehand, and the label delay in milliseconds."""
        from stream.history.mapping import load_mapping
        from stream.history.reader import HistoryReader

        if self._file is None or self._mapping is None:
            raise ConfigError("FILE needs --mapping M: a YAML file that says which column is what (docs/history.md)")
        bound = load_mapping(self._mapping, self._contract)
        reader = HistoryReader(self._file, bound, label_delay_ms=self._delay_ms)
        label = bound.mapping.label
        if label is None:
            raise ConfigError(f"{self._mapping}: training needs a label: say which column it is")
        delay_ms = self._delay_ms if self._delay_ms is not None else label.delay_ms or 0
        return reader, reader.total_rows(), delay_ms

    def simulated(
        self, events: int | None, accounts: int, fraud_rate: float, seed: int, start: str | None
    ) -> tuple[Iterable[Any], int | None, int]:
        """The same of a simulated history, whose labels have delays of their own."""
        from stream.simulate.simulation import LABEL_MATURITY_DAYS, Simulation

        if events is None:
            raise ConfigError("give a FILE with --mapping M, or --simulated EVENTS")
        simulation = (
            Simulation(accounts=accounts, seed=seed, fraud_rate=fraud_rate)
            if start is None
            else Simulation(accounts=accounts, seed=seed, fraud_rate=fraud_rate, start_ms=_moment(start, "--start"))
        )
        from stream.history.batch import iterate_slices

        batch = simulation.generate(events)
        delay_ms = self._delay_ms if self._delay_ms is not None else LABEL_MATURITY_DAYS * 86_400_000
        return iterate_slices(batch, 16_384), len(batch), delay_ms


def _counted(batches: Iterable[Any], total: int | None, steps: Steps) -> Iterator[Any]:
    seen = 0
    for batch in batches:
        yield batch
        seen += len(batch)
        steps.show("events replayed", seen, total)


def _moment(text: str, option: str) -> int:
    from stream.events.moments import NO_MOMENT, moment_ms

    whole = f"{text}T00:00:00Z" if len(text) == len("2020-07-01") else text
    found = moment_ms(whole)
    if found == NO_MOMENT:
        raise ConfigError(f"{option} {text}: write a date (2020-07-01) or a time with a zone (2020-07-01T00:00:00Z)")
    return found


def _figures(figures: dict[str, float]) -> str:
    return "".join(f"  {name} {value:.4f}" for name, value in figures.items())


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
    note(f"bundle written to {out}")
