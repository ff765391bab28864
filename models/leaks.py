"""Results too good to be true: a column that tells fraud almost alone has probably seen the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from models.dataset import FRAUD, UNKNOWN, TrainingSet
from stream.features.spec import Column

SUSPICIOUS_AUC = 0.99
_EVENTS = 200_000
_PRIOR = 20.0


def suspicious_columns(dataset: TrainingSet, seed: int = 0) -> dict[str, float]:
    """Columns whose AUC alone is above SUSPICIOUS_AUC, in either direction, with it; worst first.

    Of all labelled events, or a sample with all frauds. Missing counts as a value of its own, on the better side.
    """
    random = np.random.default_rng(seed)
    labelled = np.flatnonzero(dataset.label != UNKNOWN)
    fraud = dataset.label[labelled] == FRAUD
    genuine = labelled[~fraud]
    index = np.concatenate([labelled[fraud], random.choice(genuine, min(len(genuine), _EVENTS), replace=False)])
    label = dataset.label[index] == FRAUD
    if label.all() or not label.any():
        return {}
    half = random.random(len(index)) < 0.5
    found = {}
    for columns, values in (
        (dataset.domain.aggregate_columns, dataset.aggregates),
        (dataset.domain.step_columns, dataset.steps),
    ):
        for place, column in enumerate(columns):
            auc = column_auc(values[index, place].astype(np.float64), label, column, half)
            if auc > SUSPICIOUS_AUC:
                found[column.name] = auc
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def column_auc(values: NDArray[Any], label: NDArray[np.bool_], column: Column, half: NDArray[np.bool_]) -> float:
    """The better direction's AUC of a number; of a category that of its fraud rate on one half, tested on the other."""
    if column.cardinality:
        codes = np.nan_to_num(values).astype(np.int64)
        events = np.bincount(codes[half], minlength=column.cardinality)
        frauds = np.bincount(codes[half], weights=label[half], minlength=column.cardinality)
        rate = (frauds + _PRIOR * label[half].mean()) / (events + _PRIOR)
        values, label = rate[codes[~half]], label[~half]
    if label.all() or not label.any():
        return 0.5
    best = 0.5
    for filled in (np.nan_to_num(values, nan=-np.inf, neginf=-1e38), np.nan_to_num(values, nan=np.inf, posinf=1e38)):
        auc = float(roc_auc_score(label, np.clip(filled, -1e39, 1e39)))
        best = max(best, auc, 1.0 - auc)
    return best
