"""Prequential evaluation: train, wait the label delay, test the next period; then all of it again, later in time.

    |--- train ---|-- delay --|-- test --|
               |--- train ---|-- delay --|-- test --|          moved on by one test period

A fold's model is trained at the start of its test period, on what was known then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from models import baselines
from models.baselines import BASELINES, Data, calibrated
from models.calibrate import choose_thresholds
from models.dataset import FRAUD, UNKNOWN, TrainingSet
from models.figures import DAY_MS, Scored
from models.fitting import Index, Progress, ProgressListener
from models.splits import known_by, split
from models.train import TrainedModel, TrainOptions, train
from stream.errors import ConfigError
from stream.scoring.bundle import Thresholds

NET = "riskstream"
"""The name of our own model among the baselines."""

_BATCH = 4096


@dataclass(frozen=True, slots=True)
class FoldOptions:
    """How the folds lie in time."""

    test_ms: int
    folds: int
    train_ms: int | None = None
    """None: from the beginning of the history."""
    exclude_compromised: bool = False
    """Leave out test events of an account whose fraud had been confirmed before the day of the event."""
    baselines: tuple[str, ...] = tuple(BASELINES)

    def __post_init__(self) -> None:
        if self.folds < 1:
            raise ConfigError(f"folds must be at least 1, not {self.folds}")
        baselines.check(self.baselines)


@dataclass(frozen=True, slots=True)
class Fold:
    """Trained with what was known at `moment_ms`, from events not before `from_ms`; tested from then to `end_ms`."""

    from_ms: int
    moment_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class FoldResult:
    """What one model said of one fold's test events."""

    fold: Fold
    index: Index
    """Of the test events, in the training set."""
    scored: Scored


def plan(dataset: TrainingSet, options: FoldOptions, label_delay_ms: int) -> list[Fold]:
    """The folds, the last ending with the history. ConfigError when the history is too short for them."""
    end = int(dataset.time_ms.max()) + 1
    first = int(dataset.time_ms.min())
    folds = []
    for number in range(options.folds):
        moment = end - (options.folds - number) * options.test_ms
        start = first if options.train_ms is None else moment - label_delay_ms - options.train_ms
        folds.append(Fold(start, moment, moment + options.test_ms))
    lacking = first + label_delay_ms + DAY_MS - folds[0].moment_ms
    if lacking > 0 or folds[0].from_ms < first:
        raise ConfigError(
            f"the history of {(end - first) / DAY_MS:.0f} days is too short for {options.folds} folds of "
            f"{options.test_ms / DAY_MS:.0f} days with that training period and delay: give fewer --folds, "
            "or a shorter --train or --test"
        )
    return folds


def tested(dataset: TrainingSet, start_ms: int, end_ms: int, *, exclude_compromised: bool) -> Index:
    """The labelled events of this period."""
    chosen = (dataset.time_ms >= start_ms) & (dataset.time_ms < end_ms) & (dataset.label != UNKNOWN)
    if exclude_compromised:
        chosen &= ~compromised(dataset)
    return np.flatnonzero(chosen)


def compromised(dataset: TrainingSet) -> NDArray[np.bool_]:
    """(N,): a fraud of the event's account had been confirmed before the event's day (UTC) began."""
    fraud = dataset.label == FRAUD
    earliest = np.full(int(dataset.account.max(initial=0)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(earliest, dataset.account[fraud], dataset.known_ms[fraud])
    day_start = dataset.time_ms // DAY_MS * DAY_MS
    return earliest[dataset.account] <= day_start


def scored(dataset: TrainingSet, index: Index, probability: NDArray[np.float64], thresholds: Thresholds) -> Scored:
    """These events with these probabilities (N,), and what the thresholds make of them."""
    return Scored(
        probability=probability,
        fraud=dataset.label[index] == FRAUD,
        time_ms=dataset.time_ms[index],
        account=dataset.account[index],
        amount=dataset.amount[index],
        review=probability >= thresholds.review,
        decline=probability >= thresholds.decline,
    )


def probabilities(trained: TrainedModel, dataset: TrainingSet, index: Index) -> NDArray[np.float64]:
    """(N,) of a model that was trained on all the set's columns."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(index), _BATCH):
            rows = index[start : start + _BATCH]
            steps, lengths = dataset.sequences(rows)
            inputs = (torch.from_numpy(array) for array in (steps, lengths, dataset.aggregates[rows]))
            parts.append(trained.net(*inputs)["probability"].numpy())
    return np.concatenate(parts).astype(np.float64)


def run(
    dataset: TrainingSet, options: FoldOptions, training: TrainOptions, listener: ProgressListener
) -> dict[str, list[FoldResult]]:
    """Every model on every fold, by name, our own first. `training` says all but when. Blocks for minutes."""
    results: dict[str, list[FoldResult]] = {NET: [], **{name: [] for name in options.baselines}}
    folds = plan(dataset, options, training.label_delay_ms)
    for number, fold in enumerate(folds, 1):
        own = replace(training, until_ms=fold.moment_ms, from_ms=fold.from_ms, importance=False)
        index = tested(dataset, fold.moment_ms, fold.end_ms, exclude_compromised=options.exclude_compromised)
        if not len(index):
            raise ConfigError(f"fold {number} has no labelled event to test on: give a longer --test")
        told = _within(listener, f"fold {number} of {len(folds)}")
        trained = train(dataset, own, told)
        own_scores = scored(dataset, index, probabilities(trained, dataset, index), trained.thresholds)
        results[NET].append(FoldResult(fold, index, own_scores))
        for name in options.baselines:
            told(Progress(name, 0, 1))
            results[name].append(FoldResult(fold, index, _baseline(dataset, own, name, index)))
    return results


def _baseline(dataset: TrainingSet, options: TrainOptions, name: str, index: Index) -> Scored:
    delay_ms = options.label_delay_ms
    parts = split(dataset, options.until_ms, delay_ms, options.validation_share, from_ms=options.from_ms)
    known = np.flatnonzero(known_by(dataset, options.until_ms, delay_ms) & (dataset.time_ms >= options.from_ms))
    data = Data(dataset, parts.train, parts.validation, known)
    model = calibrated(BASELINES[name](data, options.seed, options.threads), data)
    thresholds = choose_thresholds(
        model(data.features(parts.validation)), data.fraud(parts.validation), options.alert_rate
    )
    return scored(dataset, index, model(data.features(index)), thresholds)


def _within(listener: ProgressListener, place: str) -> ProgressListener:
    def tell(progress: Progress) -> None:
        listener(replace(progress, stage=f"{place}: {progress.stage}"))

    return tell
