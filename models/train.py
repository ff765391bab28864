"""Training: from a TrainingSet to a calibrated net with thresholds. `models.export` makes a bundle of the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from models.calibrate import choose_thresholds, fit_platt, score_bands
from models.dataset import FRAUD, GENUINE, TrainingSet
from models.evaluate import evaluate
from models.fitting import FitOptions, Fitted, Index, Progress, ProgressListener, Tensors, fit, predict
from models.nets import HEADS, ColumnStatistics, NetOptions, RiskNet
from models.splits import Split, split
from stream.errors import ConfigError
from stream.features.spec import Column
from stream.scoring.bundle import Band, Calibration, Thresholds, nan_to_none

_STATISTICS_ROWS = 100_000
_SAMPLES = 40

Values = NDArray[np.float16] | NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What `train` needs to know beside the data."""

    until_ms: int
    """Only labels known by then take part."""
    label_delay_ms: int
    alert_rate: float
    """Share of events that the review threshold may alert on."""
    validation_share: float = 0.2
    step_columns: tuple[str, ...] | None = None
    """Columns that the model reads, by name; None: all of the domain's."""
    aggregate_columns: tuple[str, ...] | None = None
    seed: int = 0
    threads: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    net: NetOptions = field(default_factory=NetOptions)
    fit: FitOptions = field(default_factory=FitOptions)

    def __post_init__(self) -> None:
        for name, value in (("alert_rate", self.alert_rate), ("validation_share", self.validation_share)):
            if not 0.0 < value < 1.0:
                raise ConfigError(f"{name} must be between 0 and 1, not {value}")
        if self.label_delay_ms < 0:
            raise ConfigError(f"label_delay_ms must not be negative, not {self.label_delay_ms}")


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A net on the CPU in evaluation mode, calibration inside, and what its manifest will say."""

    net: RiskNet
    dataset_fingerprint: str
    options: TrainOptions
    step_columns: tuple[str, ...]
    aggregate_columns: tuple[str, ...]
    calibration: Calibration
    thresholds: Thresholds
    bands: tuple[Band, ...]
    step_references: dict[str, float | None]
    aggregate_references: dict[str, float | None]
    metrics: dict[str, float]
    """On the validation period, which also chose the epoch, calibration and thresholds: on the bright side."""
    train_events: int
    train_frauds: int
    validation_events: int
    validation_frauds: int
    samples: tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]
    """steps, lengths, aggregates of some validation events: golden inputs."""


def silent(progress: Progress) -> None:
    """A listener that tells nobody."""


def train(dataset: TrainingSet, options: TrainOptions, listener: ProgressListener = silent) -> TrainedModel:
    """Trains, calibrates and chooses thresholds. Blocks for seconds to minutes.

    ConfigError when the history has too little, or a named column is not the domain's. The same data, options
    and thread count give the same model on a CPU.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            return _train(dataset, options, listener)
    finally:
        torch.set_num_threads(threads)


def _train(dataset: TrainingSet, options: TrainOptions, listener: ProgressListener) -> TrainedModel:
    listener(Progress("prepare", 0, 1))
    parts = split(dataset, options.until_ms, options.label_delay_ms, options.validation_share)
    random = np.random.default_rng(options.seed)
    step_columns, steps = _select(dataset.steps, dataset.domain.step_columns, options.step_columns, "step")
    aggregate_columns, aggregates = _select(
        dataset.aggregates, dataset.domain.aggregate_columns, options.aggregate_columns, "aggregate"
    )
    sampled = parts.train
    if len(sampled) > _STATISTICS_ROWS:
        sampled = np.sort(random.choice(sampled, _STATISTICS_ROWS, replace=False))
    net = RiskNet(
        column_statistics(steps[sampled], step_columns),
        column_statistics(aggregates[sampled], aggregate_columns),
        options.net,
    )
    tensors = _to_device(steps, dataset, aggregates, options.device)
    net.to(tensors.steps.device)
    listener(Progress("prepare", 1, 1))
    fitted = fit(net, tensors, parts.train, parts.validation, options=options.fit, random=random, listener=listener)
    listener(Progress("calibrate", 0, 1))
    log_odds = predict(net, tensors, parts.validation).astype(np.float64)
    label = (dataset.label[parts.validation] == FRAUD).astype(np.int64)
    calibration = _calibrate(net, log_odds, label, fitted)
    probability = _probability(log_odds[:, 0], calibration.coefficients[HEADS[0]])
    thresholds = choose_thresholds(probability, label, options.alert_rate)
    genuine = sampled[dataset.label[sampled] == GENUINE]
    listener(Progress("calibrate", 1, 1))
    return TrainedModel(
        net=net.cpu().eval(),
        dataset_fingerprint=dataset.fingerprint(),
        options=options,
        step_columns=tuple(column.name for column in step_columns),
        aggregate_columns=tuple(column.name for column in aggregate_columns),
        calibration=calibration,
        thresholds=thresholds,
        bands=score_bands(probability, thresholds),
        step_references=references(steps[genuine], step_columns),
        aggregate_references=references(aggregates[genuine], aggregate_columns),
        metrics=_metrics(log_odds, label, calibration, thresholds, fitted),
        train_events=len(parts.train),
        train_frauds=int((dataset.label[parts.train] == FRAUD).sum()),
        validation_events=len(label),
        validation_frauds=int(label.sum()),
        samples=_samples(tensors, parts, random),
    )


def column_statistics(values: Values, columns: Sequence[Column]) -> ColumnStatistics:
    """Mean and spread of each column of (N, C), over what is present, the outermost thousandth on each side cut off.

    Where cutting leaves no spread (a flag that is rarely set) the plain spread counts.
    """
    mean, factor = np.zeros(len(columns), np.float32), np.zeros(len(columns), np.float32)
    for position, column in enumerate(columns):
        present = values[:, position].astype(np.float64)
        present = present[np.isfinite(present)]
        if column.cardinality or len(present) == 0:
            continue
        looked_at = np.log1p(np.maximum(present, 0.0)) if column.log else present
        cut = np.clip(looked_at, *np.quantile(looked_at, (0.001, 0.999)))
        spread = float(cut.std()) or float(looked_at.std())
        mean[position], factor[position] = cut.mean(), 1.0 / spread if spread > 1e-6 else 0.0
    missing = np.isnan(values).mean(axis=0).reshape(-1)
    return ColumnStatistics(
        log=np.array([column.log for column in columns]),
        mean=mean,
        factor=factor,
        missing=(missing > 0) & (missing < 1),
        cardinality=np.array([column.cardinality for column in columns], dtype=np.int64),
    )


def references(values: Values, columns: Sequence[Column]) -> dict[str, float | None]:
    """The usual value of each column of (N, C): median, commonest code of a category, None if mostly missing."""
    usual: dict[str, float | None] = {}
    for position, column in enumerate(columns):
        present = values[:, position].astype(np.float64)
        present = present[np.isfinite(present)]
        if len(present) * 2 < len(values) or len(present) == 0:
            usual[column.name] = None
        elif column.cardinality:
            usual[column.name] = float(np.bincount(present.astype(np.int64)).argmax())
        else:
            usual[column.name] = float(np.median(present))
    return usual


def _select(
    values: Values, columns: tuple[Column, ...], names: tuple[str, ...] | None, kind: str
) -> tuple[tuple[Column, ...], Values]:
    """The columns that the model reads, and their values (N, C)."""
    if names is None:
        return columns, values
    place = {column.name: position for position, column in enumerate(columns)}
    unknown = [name for name in names if name not in place]
    if unknown or not names:
        raise ConfigError(f"{kind}_columns: {unknown or 'none'} given; the domain has {sorted(place)}")
    index = [place[name] for name in names]
    return tuple(columns[position] for position in index), values[:, index]


def _to_device(steps: Values, dataset: TrainingSet, aggregates: Values, device: str) -> Tensors:
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    with_zeros = np.concatenate([steps, np.zeros((1, steps.shape[1]), steps.dtype)])
    return Tensors(
        steps=torch.from_numpy(with_zeros).to(chosen),
        predecessors=torch.from_numpy(dataset.predecessors).to(chosen),
        aggregates=torch.from_numpy(np.ascontiguousarray(aggregates, np.float32)).to(chosen),
        fraud=torch.from_numpy((dataset.label == FRAUD).astype(np.float32)).to(chosen),
    )


def _calibrate(net: RiskNet, log_odds: NDArray[np.float64], label: NDArray[Any], fitted: Fitted) -> Calibration:
    """Fits every head, and puts the result into the net.

    Drawing fewer genuine events shifted the prior: that is undone first.
    """
    shift = float(np.log(fitted.genuine_share))
    coefficients = {}
    for position, head in enumerate(HEADS):
        slope, intercept = fit_platt(log_odds[:, position] + shift, label)
        coefficients[head] = (slope, intercept + slope * shift)
    net.calibrate(coefficients)
    return Calibration(method="platt", coefficients=coefficients, events=len(label), frauds=int(label.sum()))


def _probability(log_odds: NDArray[np.float64], coefficients: tuple[float, float]) -> NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-np.clip(log_odds * coefficients[0] + coefficients[1], -80.0, 80.0)))


def _metrics(
    log_odds: NDArray[np.float64],
    label: NDArray[Any],
    calibration: Calibration,
    thresholds: Thresholds,
    fitted: Fitted,
) -> dict[str, float]:
    metrics: dict[str, float] = {"best_epoch": fitted.best_epoch, "epochs": fitted.epochs}
    for position, head in enumerate(HEADS):
        probability = _probability(log_odds[:, position], calibration.coefficients[head])
        figures = evaluate(probability, label, thresholds.review)
        if head == HEADS[0]:
            metrics |= {f"validation_{name}": value for name, value in figures.items()}
        else:
            metrics[f"validation_{head}_average_precision"] = figures["average_precision"]
    return metrics


def _samples(
    tensors: Tensors, parts: Split, random: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    chosen: Index = random.choice(parts.validation, min(_SAMPLES, len(parts.validation)), replace=False)
    steps, lengths, aggregates = tensors.batch(chosen)
    return steps.cpu().numpy(), lengths.cpu().numpy(), aggregates.cpu().numpy()


def plain_options(options: TrainOptions) -> dict[str, Any]:
    """The options as JSON values, for the manifest."""
    return dataclasses.asdict(options)


def plain_metrics(metrics: dict[str, float]) -> dict[str, float | None]:
    """The metrics as JSON values: None for what is not a number."""
    return {name: nan_to_none(value) for name, value in metrics.items()}
