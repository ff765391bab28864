"""A domain of a few features, and a model that is a formula: the smallest surroundings in which the engine is whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stream.domains import payments
from stream.errors import ScoringFailed
from stream.features.operators import (
    Amount,
    Count,
    Distinct,
    EntityCount,
    EntityFrauds,
    EntityMeanTimes,
    EntityStreak,
    Frauds,
    Gap,
    NormZ,
    PastEvents,
    Sum,
)
from stream.features.spec import Entity
from stream.scoring.bundle import Manifest, Thresholds
from stream.scoring.scorer import Scores

DOMAIN = replace(
    payments.DOMAIN,
    name="small",
    entities=(Entity("merchant", "merchant_id", ("1h", "7d")), Entity("device", "device_id", ("24h",))),
    categories=(),
    step=(
        Amount("step_amount", "amount", log=True),
        Gap("step_gap", "velocity", log=True),
        Count("step_count", "velocity", log=True, window="24h"),
        NormZ("step_z", "amount"),
    ),
    aggregates=(
        NormZ("amount_z", "amount"),
        Count("count", "velocity", window="1h"),
        Count("count_7d", "velocity", window="7d"),
        Sum("sum", "amount", window="7d"),
        Distinct("merchants", "merchant", field="merchant", window="7d"),
        PastEvents("past_events", "history"),
        Frauds("account_frauds", "history"),
        EntityCount("merchant_count_1h", "merchant", entity="merchant", window="1h"),
        EntityCount("merchant_count", "merchant", entity="merchant", window="7d"),
        EntityMeanTimes("merchant_mean_times", "merchant", entity="merchant", window="7d"),
        EntityFrauds("merchant_frauds", "merchant", entity="merchant", window="7d"),
        EntityStreak("merchant_streak", "merchant", entity="merchant"),
        EntityFrauds("device_frauds", "device", entity="device", window="24h"),
    ),
    sequence_length=4,
    windows=("1h", "24h", "7d"),
    reasons=(),
)
"""Payments on the wire; rows with rings, tiles, norms, labels and step vectors."""


def manifest(name: str = "formula") -> Manifest:
    """As much of a manifest as the engine reads."""
    thresholds = Thresholds(review=0.75, decline=0.9, alert_rate=0.1, review_rate=0.1, decline_rate=0.05)
    return Manifest.model_construct(
        name=name, version="1", thresholds=thresholds, step_references={}, aggregate_references={}
    )


class FormulaScorer:
    """A probability that every value of the input moves, and that no other event of the batch does."""

    def __init__(self, name: str = "formula", *, fails_after: int = 2**60) -> None:
        """From the call `fails_after` on (the first is 0) it raises."""
        self.manifest = manifest(name)
        self.calls = 0
        self._fails_after = fails_after

    def score(self, steps: NDArray[np.float32], lengths: NDArray[np.int64], aggregates: NDArray[np.float32]) -> Scores:
        self.calls += 1
        if self.calls > self._fails_after:
            raise ScoringFailed(f"model {self.manifest.label} gave a value that is not finite")
        seen = np.where(np.isnan(steps), -1.0, steps.astype(np.float64)).sum(axis=1) / lengths[:, None]
        values = np.where(np.isnan(aggregates), -1.0, np.arcsinh(aggregates.astype(np.float64)))
        first = np.sin(seen * np.linspace(0.5, 1.5, seen.shape[1])).sum(axis=1)
        second = np.sin(values * np.linspace(0.3, 1.3, values.shape[1])).sum(axis=1)
        log_odds = (0.7 * (first + second) - 1.2).astype(np.float32)
        components = {"sequence": _sigmoid(first), "aggregate": _sigmoid(second)}
        return Scores(_sigmoid(log_odds), log_odds, components)


def _sigmoid(values: NDArray[np.floating]) -> NDArray[np.float32]:
    return (1.0 / (1.0 + np.exp(-values.astype(np.float64)))).astype(np.float32)
