"""What a good data scientist would otherwise use, on the same features: aggregates and the current step's columns.

Each is fitted on the training events, chooses by the validation events what it has to choose, and is then fitted
again on all that is known, as the nets are.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from models.calibrate import fit_platt
from models.dataset import FRAUD, TrainingSet
from models.evaluate import average_precision
from models.fitting import Index
from stream.errors import ConfigError
from stream.features.spec import Column

Array = NDArray[Any]
Model = Callable[[Array], Array]
"""(N, C) to log-odds (N,), not calibrated."""

_FOREST_EVENTS = 100_000
_FEW_CODES = 64


class Data:
    """The features of a training set as one table, and its labels."""

    def __init__(self, dataset: TrainingSet, train: Index, validation: Index, known: Index) -> None:
        self.columns: tuple[Column, ...] = (*dataset.domain.aggregate_columns, *dataset.domain.step_columns)
        self._dataset = dataset
        self.train, self.validation, self.known = train, validation, known

    def features(self, index: Index) -> Array:
        """(N, C) float32, NaN where missing; a missing category is its code 0."""
        found = np.concatenate([self._dataset.aggregates[index], self._dataset.steps[index].astype(np.float32)], axis=1)
        coded = [place for place, column in enumerate(self.columns) if column.cardinality]
        found[:, coded] = np.nan_to_num(found[:, coded])
        return found

    def fraud(self, index: Index) -> Array:
        """(N,) 0 or 1."""
        return np.asarray(self._dataset.label[index] == FRAUD, dtype=np.int64)


def logistic_regression(data: Data, seed: int, threads: int) -> Model:
    """Standardised numbers, logarithms where the column says so, indicators of the missing, one-hot categories."""
    design = _Design(data.columns, data.features(data.train))

    def fitted(index: Index, strength: float) -> LogisticRegression:
        model = LogisticRegression(C=strength, max_iter=500)
        model.fit(design(data.features(index)), data.fraud(index))
        return model

    held_out, fraud = design(data.features(data.validation)), data.fraud(data.validation)
    by_strength = {c: average_precision(fitted(data.train, c).decision_function(held_out), fraud) for c in (0.01, 1.0)}
    model = fitted(data.known, max(by_strength, key=lambda c: by_strength[c]))
    return lambda features: np.asarray(model.decision_function(design(features)))


def random_forest(data: Data, seed: int, threads: int) -> Model:
    """300 trees on all frauds and a sample of the genuine events, classes balanced."""
    random = np.random.default_rng(seed)
    fraud = data.fraud(data.known).astype(np.bool_)
    genuine = data.known[~fraud]
    drawn = random.choice(genuine, min(len(genuine), _FOREST_EVENTS), replace=False)
    index = np.concatenate([data.known[fraud], drawn])
    model = RandomForestClassifier(
        300, min_samples_leaf=2, class_weight="balanced_subsample", n_jobs=threads, random_state=seed
    )
    features = data.features(index)
    usual = np.array([_median(column) for column in features.T])
    model.fit(_filled(features, usual), data.fraud(index))

    def predict(rows: Array) -> Array:
        share = np.clip(model.predict_proba(_filled(rows, usual))[:, 1], 1e-4, 1 - 1e-4)
        return np.asarray(np.log(share / (1 - share)))

    return predict


def lightgbm(data: Data, seed: int, threads: int) -> Model:
    """Two settings of leaves and regularisation, rounds by early stopping on average precision, fitted again on all."""
    try:
        package = importlib.import_module("lightgbm")
    except ImportError:
        raise ConfigError("the baseline lightgbm needs the package: pip install lightgbm") from None
    train = package.Dataset(data.features(data.train), data.fraud(data.train), free_raw_data=False)
    validation = package.Dataset(data.features(data.validation), data.fraud(data.validation), reference=train)
    common = {
        "objective": "binary",
        "metric": "average_precision",
        "learning_rate": 0.05,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "verbose": -1,
        "seed": seed,
        "num_threads": threads,
        "deterministic": True,
        "feature_pre_filter": False,
    }
    tried = []
    for settings in (
        {"num_leaves": 31, "min_data_in_leaf": 50, "feature_fraction": 0.7, "lambda_l2": 1.0},
        {"num_leaves": 15, "min_data_in_leaf": 20, "feature_fraction": 0.4, "lambda_l2": 5.0},
    ):
        stop = package.early_stopping(80, verbose=False)
        booster = package.train(common | settings, train, 1500, valid_sets=[validation], callbacks=[stop])
        score = booster.best_score["valid_0"]["average_precision"]
        tried.append((score, settings, booster.best_iteration))
    _, settings, rounds = max(tried, key=lambda entry: entry[0])
    # More data carry more rounds.
    rounds = round(rounds * len(data.known) / len(data.train))
    whole = package.Dataset(data.features(data.known), data.fraud(data.known))
    booster = package.train(common | settings, whole, max(1, rounds))
    return lambda features: np.asarray(booster.predict(features, raw_score=True))


BASELINES: Mapping[str, Callable[[Data, int, int], Model]] = {
    "lightgbm": lightgbm,
    "random-forest": random_forest,
    "logistic-regression": logistic_regression,
}


def check(names: Sequence[str]) -> None:
    """ConfigError for a name that is no baseline."""
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        raise ConfigError(f"baselines {unknown}: choose from {', '.join(BASELINES)}")


def calibrated(model: Model, data: Data) -> Model:
    """The model with Platt's calibration on the validation events: (N, C) to probabilities.

    The validation events were in its last fit, so it is a little too sure of itself: ranking figures are not touched.
    """
    slope, intercept = fit_platt(model(data.features(data.validation)), data.fraud(data.validation))
    return lambda features: 1.0 / (1.0 + np.exp(-np.clip(slope * model(features) + intercept, -80.0, 80.0)))


class _Design:
    """The table that a linear model reads."""

    def __init__(self, columns: Sequence[Column], training: Array) -> None:
        self._columns = columns
        numbers = self._numbers(training)
        present = np.isfinite(numbers)
        count = np.maximum(present.sum(axis=0), 1)
        self._mean = np.where(present, numbers, 0.0).sum(axis=0, dtype=np.float64) / count
        spread = np.sqrt((np.where(present, numbers - self._mean, 0.0) ** 2).sum(axis=0) / count)
        self._factor = np.where(spread > 1e-6, 1.0 / np.maximum(spread, 1e-6), 0.0)
        missing = np.isnan(numbers).mean(axis=0)
        self._indicated = np.flatnonzero((missing > 0) & (missing < 1))
        self._codes = {
            place: np.unique(training[:, place], return_counts=True)
            for place, column in enumerate(columns)
            if column.cardinality
        }

    def __call__(self, features: Array) -> Array:
        numbers = self._numbers(features)
        standard = np.clip(np.nan_to_num((numbers - self._mean) * self._factor), -8.0, 8.0)
        parts = [standard, np.isnan(numbers[:, self._indicated])]
        for place, (codes, counts) in self._codes.items():
            common = codes[np.argsort(-counts)[:_FEW_CODES]]
            parts.append(features[:, [place]] == common)
        return np.concatenate(parts, axis=1).astype(np.float32)

    def _numbers(self, features: Array) -> Array:
        numbers = [
            np.log1p(np.maximum(features[:, place], 0.0)) if column.log else features[:, place]
            for place, column in enumerate(self._columns)
            if not column.cardinality
        ]
        return np.stack(numbers, axis=1)


def _median(values: Array) -> float:
    """Of what is present; 0 where nothing is."""
    present = values[np.isfinite(values)]
    return float(np.median(present)) if len(present) else 0.0


def _filled(features: Array, usual: Array) -> Array:
    return np.where(np.isnan(features), usual, features)
