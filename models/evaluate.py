"""Figures of merit. `probability` is (N,) in [0, 1]; `label` is (N,), 1 for fraud, 0 for genuine, nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

Array = NDArray[Any]


def expected_calibration_error(probability: Array, label: Array, bins: int = 15) -> float:
    """Mean gap between stated and observed rate over `bins` of equal width, weighted by their events.

    Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015.
    """
    which = np.minimum((probability * bins).astype(np.int64), bins - 1)
    stated = np.bincount(which, weights=probability, minlength=bins)
    observed = np.bincount(which, weights=label, minlength=bins)
    return float(np.abs(stated - observed).sum() / len(label))


def average_precision(score: Array, label: Array) -> float:
    """Of any score that rises with suspicion."""
    return float(average_precision_score(label, score))


def recall_and_precision(probability: Array, label: Array, threshold: float) -> tuple[float, float]:
    """Of the frauds, the share at or above the threshold; of those at or above it, the share of fraud (NaN: none)."""
    alerted = probability >= threshold
    caught = int(label[alerted].sum())
    precision = caught / int(alerted.sum()) if alerted.any() else float("nan")
    return caught / int(label.sum()), precision


def evaluate(probability: Array, label: Array, review_threshold: float) -> dict[str, float]:
    """AUC, average precision, calibration error, and what the review threshold catches. Needs both kinds of label."""
    recall, precision = recall_and_precision(probability, label, review_threshold)
    return {
        "auc": float(roc_auc_score(label, probability)),
        "average_precision": float(average_precision_score(label, probability)),
        "ece": expected_calibration_error(probability, label),
        "recall_at_review": recall,
        "precision_at_review": precision,
        "fraud_rate": float(np.mean(label)),
        "mean_probability": float(np.mean(probability)),
    }
