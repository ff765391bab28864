"""A tiny domain, synthetic training sets with planted signals, and small bundles. Used by the tests of models."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from models.dataset import FRAUD, GENUINE, Segment, TrainingSet, predecessors
from models.export import export_bundle
from models.fitting import FitOptions
from models.nets.risknet import NetOptions
from models.train import TrainedModel, TrainOptions, train
from stream.clock import ManualClock
from stream.features.spec import Column, Domain
from stream.scoring.bundle import seal

DAY_MS = 86_400_000
START_MS = 1_600_000_000_000


@dataclass(frozen=True, slots=True)
class Numbers:
    """A made-up operator: `count` numeric columns, the last of them `log`, then `categories` of 12 codes each."""

    prefix: str
    count: int
    categories: int = 0

    @property
    def columns(self) -> tuple[Column, ...]:
        numbers = tuple(
            Column(f"{self.prefix}{i}", self.prefix, log=self.prefix == "a" and i == self.count - 1)
            for i in range(self.count)
        )
        return numbers + tuple(Column(f"{self.prefix}c{i}", self.prefix, 12) for i in range(self.categories))


class Event(BaseModel):
    event_id: str


def tiny_domain(step: int = 4, aggregate: int = 5, categories: int = 1, sequence_length: int = 8) -> Domain:
    return Domain(
        name="tiny",
        event=Event,
        label=Event,
        entities=(),
        categories=(),
        step=(Numbers("s", step, categories),),
        aggregates=(Numbers("a", aggregate, categories),),
        base_currency="EUR",
        sequence_length=sequence_length,
    )


def random_columns(
    random: np.random.Generator, rows: int, columns: tuple[Column, ...], missing: float = 0.1
) -> NDArray[np.float32]:
    """(rows, C): normal numbers, some missing, and codes in the category columns."""
    values = random.normal(size=(rows, len(columns))).astype(np.float32)
    values[random.random(values.shape) < missing] = np.nan
    for position, column in enumerate(columns):
        if column.log:
            values[:, position] = np.exp(3.0 * values[:, position])
        if column.cardinality:
            values[:, position] = random.integers(0, column.cardinality, rows)
    return values


def planted(
    seed: int = 0,
    events: int = 6000,
    *,
    sequence_signal: bool = False,
    aggregate_signal: bool = False,
    delay_ms: int = 2 * DAY_MS,
    domain: Domain | None = None,
) -> TrainingSet:
    """60 days of events of 100 accounts, 5 percent fraud.

    Sequence signal: s0 of the account's three latest events, this one included, is high: no single event
    tells, since s0 is as high in genuine events, only not three times in a row. Aggregate signal: a0 is high.
    """
    domain = domain or tiny_domain()
    random = np.random.default_rng(seed)
    account = random.integers(0, 100, events).astype(np.int32)
    links = predecessors(account, domain.sequence_length)
    steps = random_columns(random, events, domain.step_columns, missing=0.02)
    aggregates = random_columns(random, events, domain.aggregate_columns)
    steps[:, 0] = np.where(random.random(events) < 0.37, 1.0, -1.0)
    label = (random.random(events) < 0.05).astype(np.int8)
    if sequence_signal:
        lengths = (links >= 0).sum(axis=1)
        latest = np.stack([links[np.arange(events), np.maximum(lengths - 1 - back, 0)] for back in range(3)], axis=1)
        label = ((steps[latest, 0] > 0).all(axis=1) & (lengths >= 3)).astype(np.int8)
    if aggregate_signal:
        aggregates[:, 0] = random.normal(size=events) + 3.0 * label
    time_ms = START_MS + np.sort(random.integers(0, 60 * DAY_MS, events))
    return TrainingSet(
        domain=domain,
        steps=steps,
        predecessors=links,
        aggregates=aggregates,
        label=np.where(label > 0, FRAUD, GENUINE).astype(np.int8),
        time_ms=time_ms,
        known_ms=time_ms + delay_ms,
        account=account,
        amount=np.exp(random.normal(3, 1, events)).astype(np.float32),
        segments={"channel": Segment(random.integers(0, 3, events).astype(np.int16), ("(none)", "pos", "web"))},
    )


def quick_options(dataset: TrainingSet, **changes: object) -> TrainOptions:
    """Small and fast: enough to learn a planted signal in seconds."""
    values: dict[str, object] = {
        "until_ms": int(dataset.time_ms[-1]) + 1,
        "label_delay_ms": 2 * DAY_MS,
        "alert_rate": 0.05,
        "device": "cpu",
        "refit": False,
        "net": NetOptions(hidden=16, embedding=3, width=16, knots=4),
        "fit": FitOptions(epochs=6, batch_size=128, learning_rate=1e-2, epoch_steps=1),
    }
    return TrainOptions(**(values | changes))  # type: ignore[arg-type]


def quick_model(seed: int = 0, domain: Domain | None = None, **changes: object) -> tuple[TrainedModel, Domain]:
    """A model trained on an easy signal for one short epoch, and its domain."""
    dataset = planted(seed, 2000, aggregate_signal=True, domain=domain)
    fit = FitOptions(epochs=1, batch_size=128, learning_rate=1e-2, weight_decay=1e-2, epoch_steps=20)
    return train(dataset, quick_options(dataset, fit=fit, **changes)), dataset.domain


def write_quick_bundle(
    directory: Path, *, domain: Domain | None = None, signature_key: bytes | None = None, **changes: object
) -> Domain:
    """Exports `quick_model` to the folder; returns its domain."""
    trained, domain = quick_model(0, domain, **changes)
    export_bundle(
        trained,
        domain,
        directory,
        name="tiny",
        version="1",
        command="riskstream train tiny.csv",
        clock=ManualClock(),
        signature_key=signature_key,
    )
    return domain


@functools.cache
def quick_bundle() -> tuple[Domain, dict[str, bytes]]:
    """The files of one small bundle, made once per process, and its domain."""
    with tempfile.TemporaryDirectory() as folder:
        domain = write_quick_bundle(Path(folder) / "bundle")
        return domain, {path.name: path.read_bytes() for path in (Path(folder) / "bundle").iterdir()}


def lay_out(directory: Path, files: dict[str, bytes]) -> Path:
    """Writes the files into a new folder."""
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def reseal(files: dict[str, bytes], signature_key: bytes | None = None, **changes: Any) -> dict[str, bytes]:
    """The bundle with other manifest fields, and hashes and digest that fit: what a careful forger would make."""
    fields = json.loads(files["manifest.json"])
    fields["files"] = {n: hashlib.sha256(c).hexdigest() for n, c in files.items() if n != "manifest.json"}
    return {**files, "manifest.json": seal({**fields, **changes}, signature_key)}


def random_batch(
    seed: int, size: int, domain: Domain
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """steps (B,T,F) with zeros after lengths, lengths, aggregates, of all the domain's columns."""
    random = np.random.default_rng(seed)
    length, width = domain.sequence_length, len(domain.step_columns)
    steps = random_columns(random, size * length, domain.step_columns).reshape(size, length, width)
    lengths = random.integers(1, length + 1, size)
    steps[np.arange(length)[None, :] >= lengths[:, None]] = 0.0
    return steps, lengths.astype(np.int64), random_columns(random, size, domain.aggregate_columns)
