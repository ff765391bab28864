"""Training: from a TrainingSet to a calibrated net with thresholds. `models.export` makes a bundle of the result.

A member of the ensemble is trained twice. First on what was known when the validation period begins: that fit
chooses the epoch, and its validation scores choose calibration, thresholds and every figure of the report. Then
from scratch on all that is known, validation included, through the whole schedule, for a net whose learning rate
has not come down is unfinished; if early stopping ended the first fit, through one that ends at its best epoch.
That net is exported.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from models.calibrate import choose_thresholds, fit_platt, score_bands
from models.checkpoint import Checkpoints
from models.dataset import FRAUD, GENUINE, TrainingSet
from models.evaluate import evaluate
from models.fitting import Fit, FitOptions, Fitted, Index, Progress, ProgressListener, Tensors, predict
from models.importance import NOT_MEASURED, Importance, permutation_importance
from models.nets.risknet import NetOptions, RiskNet, architecture
from models.nets.scoring import ANOMALY, ScoringNet
from models.pruning import Pruning, fine_tuning, smaller, us_per_event
from models.reference import reference
from models.splits import Split, known_by, split
from models.statistics import Values, column_statistics, references
from models.unsupervised import fit_autoencoder, pretrain
from stream import __version__
from stream.errors import ConfigError
from stream.features.spec import Column
from stream.scoring.bundle import Band, Calibration, Thresholds, nan_to_none
from stream.scoring.reference import Reference

_STATISTICS_ROWS = 100_000
_SAMPLES = 40
F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What `train` needs to know beside the data."""

    until_ms: int
    """Only labels known by then take part."""
    label_delay_ms: int
    alert_rate: float
    """Share of events that the review threshold may alert on."""
    from_ms: int = 0
    """Events before this teach nothing; features still know them."""
    validation_share: float = 0.2
    step_columns: tuple[str, ...] | None = None
    """Columns that the model reads, by name; None: all of the domain's."""
    aggregate_columns: tuple[str, ...] | None = None
    seed: int = 0
    threads: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    ensemble: int = 1
    """Nets of different seeds, averaged in one bundle; each costs as much again per scored event."""
    refit: bool = True
    """Train once more on all that is known, validation included."""
    anomaly: bool = False
    """Add the component `anomaly`: the reconstruction error of an autoencoder, trained without labels."""
    prune: float = 0.0
    """Share of the hidden units that is taken out of the trained nets, which are then trained on for a while."""
    pretrain_epochs: int = 0
    """Epochs of rebuilding masked columns, over all events, labelled or not, before the labels teach."""
    importance: bool = True
    """Measure which features matter, for the card and for drift: some seconds that an evaluation's folds can save."""
    net: NetOptions = field(default_factory=NetOptions)
    fit: FitOptions = field(default_factory=FitOptions)

    def __post_init__(self) -> None:
        for name, value in (("alert_rate", self.alert_rate), ("validation_share", self.validation_share)):
            if not 0.0 < value < 1.0:
                raise ConfigError(f"{name} must be between 0 and 1, not {value}")
        if not 0.0 <= self.prune < 1.0:
            raise ConfigError(f"prune must be from 0 to below 1, not {self.prune}")
        if architecture(self.net.architecture).sequence in ("cnn", "attention") and self.prune:
            raise ConfigError("--prune takes units out of lstm, gru, rnn and mlp nets; choose another --architecture")
        for name, number in (("label_delay_ms", self.label_delay_ms), ("pretrain_epochs", self.pretrain_epochs)):
            if number < 0:
                raise ConfigError(f"{name} must not be negative, not {number}")
        if self.ensemble < 1:
            raise ConfigError(f"ensemble must be at least 1, not {self.ensemble}")


@dataclass(frozen=True, slots=True)
class Validation:
    """What the model that had not seen them said of the validation events. Arrays are (V,)."""

    index: Index
    """Into the training set."""
    probability: F64


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A net on the CPU in evaluation mode, calibration inside, and what its manifest will say."""

    net: ScoringNet
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
    validation: Validation
    importance: Importance
    reference: Reference
    pruning: Pruning | None
    """What pruning cost and brought the first member; None without it."""
    samples: tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]
    """steps, lengths, aggregates of some validation events: golden inputs."""


def silent(progress: Progress) -> None:
    """A listener that tells nobody."""


def train(
    dataset: TrainingSet,
    options: TrainOptions,
    listener: ProgressListener = silent,
    *,
    checkpoint_folder: Path | None = None,
) -> TrainedModel:
    """Trains, calibrates and chooses thresholds. Blocks for seconds to minutes.

    ConfigError when the history has too little, or a named column is not the domain's. The same data, options
    and thread count give the same model on a CPU. With a checkpoint folder an interrupted call goes on where it
    stopped, if it is repeated with the same data and options; the folder is removed at the end.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            training = _Training(dataset, options, listener, checkpoint_folder)
            return training.run()
    finally:
        torch.set_num_threads(threads)


class _Training:
    """One call of `train`: what its stages share."""

    def __init__(
        self, dataset: TrainingSet, options: TrainOptions, listener: ProgressListener, folder: Path | None
    ) -> None:
        listener(Progress("prepare", 0, 1))
        self._dataset, self._options, self._listener = dataset, options, listener
        delay_ms = options.label_delay_ms
        self._parts = split(dataset, options.until_ms, delay_ms, options.validation_share, from_ms=options.from_ms)
        known = known_by(dataset, options.until_ms, delay_ms) & (dataset.time_ms >= options.from_ms)
        self._known = np.flatnonzero(known)
        self._columns, steps = _select(dataset.steps, dataset.domain.step_columns, options.step_columns, "step")
        self._aggregate_columns, aggregates = _select(
            dataset.aggregates, dataset.domain.aggregate_columns, options.aggregate_columns, "aggregate"
        )
        self._steps, self._aggregates = steps, np.ascontiguousarray(aggregates, np.float32)
        self._tensors = to_device(steps, dataset, self._aggregates, options.device)
        self._fingerprint = dataset.fingerprint()
        self._checkpoints = Checkpoints(folder, _key(self._fingerprint, options))
        listener(Progress("prepare", 1, 1))

    def run(self) -> TrainedModel:
        dataset, parts, options = self._dataset, self._parts, self._options
        judged, exported = self._members()
        anomaly = None
        if options.anomaly:
            net = self._net(parts.train, 0)
            anomaly = fit_autoencoder(
                *net.statistics, self._tensors, self._unlabelled(parts.validation_from_ms), (options.seed, 2)
            )
        heads = judged[0].net.heads
        judge = ScoringNet([member.net for member in judged], heads, anomaly)
        scoring = ScoringNet([member.net for member in exported], heads, anomaly)
        self._listener(Progress("calibrate", 0, 1))
        judge.to(self._tensors.steps.device)
        log_odds = predict(_Raw(judge), self._tensors, parts.validation).astype(np.float64)
        label = (dataset.label[parts.validation] == FRAUD).astype(np.int64)
        calibration = self._calibrate(judge, scoring, log_odds, label, (judged, exported))
        probability = _probability(log_odds, judge)
        thresholds = choose_thresholds(probability[:, 0], label, options.alert_rate)
        importance = self._importance(judge, label)
        genuine = self._sampled(parts.train)
        genuine = genuine[dataset.label[genuine] == GENUINE]
        self._checkpoints.clear()
        self._listener(Progress("calibrate", 1, 1))
        return TrainedModel(
            net=scoring.cpu().eval(),
            dataset_fingerprint=self._fingerprint,
            options=options,
            step_columns=tuple(column.name for column in self._columns),
            aggregate_columns=tuple(column.name for column in self._aggregate_columns),
            calibration=calibration,
            thresholds=thresholds,
            bands=score_bands(probability[:, 0], thresholds),
            step_references=references(self._steps[genuine], self._columns),
            aggregate_references=references(self._aggregates[genuine], self._aggregate_columns),
            metrics=_metrics(probability, label, judge.heads, thresholds, judged),
            train_events=len(self._known if options.refit else parts.train),
            train_frauds=int((dataset.label[self._known if options.refit else parts.train] == FRAUD).sum()),
            validation_events=len(label),
            validation_frauds=int(label.sum()),
            validation=Validation(parts.validation, probability[:, 0]),
            importance=importance,
            reference=reference(
                probability[:, 0],
                self._aggregates[parts.validation],
                self._aggregate_columns,
                dataset.time_ms[parts.validation],
                importance,
            ),
            pruning=self._pruning(judged[0]),
            samples=_samples(self._tensors, parts, options.seed),
        )

    def _members(self) -> tuple[list[_Member], list[_Member]]:
        """Those that were validated, and those that are exported."""
        judged, exported = [], []
        for number in range(self._options.ensemble):
            stage = f"member {number + 1}"
            member = self._member(stage, number, self._parts.train, self._parts.validation, None)
            judged.append(member)
            if self._options.refit:
                member = self._member(f"{stage} refit", number, self._known, None, member)
            exported.append(member)
        return judged, exported

    def _member(
        self, stage: str, number: int, index: Index, validation: Index | None, model: _Member | None
    ) -> _Member:
        """One net, trained and, if that is wanted, pruned. Without `validation` on the schedule that suited `model`."""
        options = self._options
        # torch seeds the weights, numpy the draws: both from seed and member, so that any stage repeats alone.
        net, seed = self._net(index, number), (options.seed, number, int(validation is None))
        moment = options.until_ms if validation is None else self._parts.validation_from_ms
        if options.pretrain_epochs and self._checkpoints.stage(stage).load() is None:
            pretrain(net, self._tensors, self._unlabelled(moment), options.pretrain_epochs, (*seed, 1), self._listener)

        def fitted(net: RiskNet, stage: str, how: FitOptions, seed: tuple[int, ...]) -> Fitted:
            return Fit(
                net,
                self._tensors,
                index,
                validation,
                options=how,
                seed=seed,
                listener=self._listener,
                stage=stage,
                checkpoint=self._checkpoints.stage(stage),
            ).run()

        first = fitted(net, stage, options.fit if model is None else model.fits[0].suiting(options.fit), seed)
        if not options.prune:
            return _Member(net, (first,))
        small = smaller(net, options.net, options.prune, self._dataset.domain.sequence_length)
        tuning = fine_tuning(options.fit)
        again = fitted(
            small, f"{stage} pruned", tuning if model is None else model.fits[-1].suiting(tuning), (*seed, 2)
        )
        return _Member(small, (first, again), net)

    def _net(self, index: Index, member: int) -> RiskNet:
        sampled = self._sampled(index)
        fraud = self._dataset.label[sampled] == FRAUD
        knots = self._options.net.knots
        torch.manual_seed(int(np.random.default_rng((self._options.seed, member)).integers(2**62)))
        net = RiskNet(
            column_statistics(self._steps[sampled], self._columns, fraud=fraud, knots=knots),
            column_statistics(self._aggregates[sampled], self._aggregate_columns, fraud=fraud, knots=knots),
            self._options.net,
            self._dataset.domain.sequence_length,
        )
        return net.to(self._tensors.steps.device)

    def _sampled(self, index: Index) -> Index:
        """All frauds, and so many of the others that statistics of them take seconds at most."""
        if len(index) <= _STATISTICS_ROWS:
            return index
        random = np.random.default_rng(self._options.seed)
        drawn = random.choice(index, _STATISTICS_ROWS, replace=False)
        return np.union1d(drawn, index[self._dataset.label[index] == FRAUD])

    def _unlabelled(self, moment_ms: int) -> Index:
        times = self._dataset.time_ms
        return np.flatnonzero((times >= self._options.from_ms) & (times < moment_ms))

    def _calibrate(
        self,
        judge: ScoringNet,
        scoring: ScoringNet,
        log_odds: F64,
        label: NDArray[Any],
        members: tuple[list[_Member], list[_Member]],
    ) -> Calibration:
        """Fits every head on the validated nets' log-odds, and puts the result into both nets.

        Drawing fewer genuine events shifted the prior, in each fit by its own share: that is undone first.
        """
        shifts = [float(np.log([member.fits[-1].genuine_share for member in part]).mean()) for part in members]
        found: list[dict[str, tuple[float, float]]] = [{}, {}]
        for position, head in enumerate(judge.heads):
            own = [0.0, 0.0] if head == ANOMALY else shifts
            slope, intercept = fit_platt(log_odds[:, position] + own[0], label)
            for coefficients, shift in zip(found, own, strict=True):
                coefficients[head] = (slope, intercept + slope * shift)
        judge.calibrate(found[0])
        scoring.calibrate(found[1])
        return Calibration(method="platt", coefficients=found[1], events=len(label), frauds=int(label.sum()))

    def _pruning(self, member: _Member) -> Pruning | None:
        if member.whole is None:
            return None
        whole, small = self._options.net, member.net.options
        return Pruning(
            share=self._options.prune,
            hidden=(whole.hidden, small.hidden),
            width=(whole.width, small.width),
            average_precision=(member.fits[0].average_precision, member.fits[1].average_precision),
            us_per_event=(us_per_event(member.whole, self._tensors), us_per_event(member.net, self._tensors)),
        )

    def _importance(self, judge: ScoringNet, label: NDArray[Any]) -> Importance:
        if not self._options.importance:
            return NOT_MEASURED
        return permutation_importance(
            _Raw(judge),
            self._tensors,
            self._parts.validation,
            label > 0,
            step_groups=[column.group for column in self._columns],
            aggregate_columns=self._aggregate_columns,
            seed=self._options.seed,
            listener=self._listener,
        )


@dataclass(frozen=True, slots=True)
class _Member:
    """One net of the ensemble, how its fits went (a second one if it was pruned), and what it was before pruning."""

    net: RiskNet
    fits: tuple[Fitted, ...]
    whole: RiskNet | None = None


class _Raw(torch.nn.Module):
    """The log-odds before calibration of a ScoringNet, as `predict` reads a net."""

    def __init__(self, net: ScoringNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.net.raw(*inputs)


def to_device(steps: Values, dataset: TrainingSet, aggregates: Values, device: str) -> Tensors:
    """The set as tensors; `device` auto takes a GPU if there is one."""
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    with_zeros = np.concatenate([steps, np.zeros((1, steps.shape[1]), steps.dtype)])
    return Tensors(
        steps=torch.from_numpy(with_zeros).to(chosen),
        predecessors=torch.from_numpy(dataset.predecessors).to(chosen),
        aggregates=torch.from_numpy(np.ascontiguousarray(aggregates, np.float32)).to(chosen),
        fraud=torch.from_numpy((dataset.label == FRAUD).astype(np.float32)).to(chosen),
    )


def _key(fingerprint: str, options: TrainOptions) -> str:
    """What a checkpoint must agree in to be gone on with."""
    made_of = [fingerprint, plain_options(options), torch.__version__, __version__]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


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


def _probability(log_odds: F64, net: ScoringNet) -> F64:
    """(N, heads): calibrated as the net itself does it."""
    slope, intercept = net.slope.cpu().numpy().astype(np.float64), net.intercept.cpu().numpy().astype(np.float64)
    probability: F64 = 1.0 / (1.0 + np.exp(-np.clip(log_odds * slope + intercept, -80.0, 80.0)))
    return probability


def _metrics(
    probability: F64,
    label: NDArray[Any],
    heads: list[str],
    thresholds: Thresholds,
    judged: list[_Member],
) -> dict[str, float]:
    metrics: dict[str, float] = {
        "best_epoch": float(np.mean([member.fits[0].best_epoch for member in judged])),
        "epochs": float(np.mean([member.fits[0].epochs for member in judged])),
    }
    for position, head in enumerate(heads):
        figures = evaluate(probability[:, position], label, thresholds.review)
        if position == 0:
            metrics |= {f"validation_{name}": value for name, value in figures.items()}
        else:
            metrics[f"validation_{head}_average_precision"] = figures["average_precision"]
    return metrics


def _samples(
    tensors: Tensors, parts: Split, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    chosen: Index = random.choice(parts.validation, min(_SAMPLES, len(parts.validation)), replace=False)
    steps, lengths, aggregates = tensors.batch(chosen)
    return steps.cpu().numpy(), lengths.cpu().numpy(), aggregates.cpu().numpy()


def plain_options(options: TrainOptions) -> dict[str, Any]:
    """The options as JSON values, for the manifest."""
    return dataclasses.asdict(options)


def plain_metrics(metrics: dict[str, float]) -> dict[str, float | None]:
    """The metrics as JSON values: None for what is not a number."""
    return {name: nan_to_none(value) for name, value in metrics.items()}
