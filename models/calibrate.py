"""From raw log-odds to probabilities, and from probabilities to thresholds and bands. All on the validation period."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from stream.scoring.bundle import Band, Thresholds

Array = NDArray[Any]

MINIMUM_FRAUDS = 20
"""With fewer, a slope would be noise: only the level is fitted."""

SLOPE_RANGE = (0.05, 4.0)
"""A head without signal gets a slope of no meaning, even a negative one; a steep one would magnify rounding."""

DECLINE_PRECISION = 0.8
"""A decline must have been right this often on the validation period."""

_BAND_QUANTILES = (("minimal", 0.0), ("low", 0.5), ("medium", 0.95))


def fit_platt(log_odds: Array, label: Array) -> tuple[float, float]:
    """(slope, intercept) that make sigmoid(slope * log_odds + intercept) the observed rate.

    Platt, "Probabilistic Outputs for Support Vector Machines", 1999. Monotone and smooth: unlike an isotonic
    step it cannot turn a rounding difference of 1e-7 into another score.
    """
    slope = 1.0
    if int(label.sum()) >= MINIMUM_FRAUDS:
        # Platt's own guard against a slope that grows without end on separable data: targets a little inside 0 and 1.
        target = np.where(label > 0, 1.0 - 1.0 / (label.sum() + 2.0), 1.0 / ((1 - label).sum() + 2.0))
        model = LogisticRegression(C=1e6, max_iter=1000)
        model.fit(
            np.tile(log_odds, 2).reshape(-1, 1),
            np.repeat([1, 0], len(label)),
            sample_weight=np.concatenate([target, 1.0 - target]),
        )
        slope = float(np.clip(model.coef_[0, 0], *SLOPE_RANGE))
    return slope, _level(slope * log_odds, label)


def _level(log_odds: Array, label: Array) -> float:
    """The shift that makes the mean probability the observed rate, by bisection."""
    target = (float(label.sum()) + 0.5) / (len(label) + 1.0)
    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2.0
        mean = float(np.mean(1.0 / (1.0 + np.exp(-np.clip(log_odds + middle, -80.0, 80.0)))))
        low, high = (middle, high) if mean < target else (low, middle)
    return (low + high) / 2.0


def choose_thresholds(probability: Array, label: Array, alert_rate: float) -> Thresholds:
    """Review: alerts for at most `alert_rate` of the events. Decline: the most events, at most half of the alerts,
    of which DECLINE_PRECISION were fraud; where no number of events reaches that, a tenth of the alerts.
    """
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order]
    alerts = max(1, int(alert_rate * len(ranked)))
    precision = np.cumsum(label[order]) / np.arange(1, len(ranked) + 1)
    most = max(1, alerts // 2)
    good = np.flatnonzero(precision[:most] >= DECLINE_PRECISION) + 1
    declines = int(good[-1]) if len(good) else max(1, alerts // 10)
    review = _between(ranked, alerts)
    decline = max(review, _between(ranked, declines))
    return Thresholds(
        review=review,
        decline=decline,
        alert_rate=alert_rate,
        review_rate=float(np.mean(probability >= review)),
        decline_rate=float(np.mean(probability >= decline)),
    )


def _between(ranked: Array, count: int) -> float:
    """A threshold that at most `count` values of the descending `ranked` reach; half way, so rounding moves nobody."""
    if count >= len(ranked):
        return float(ranked[-1])
    above = ranked[:count][ranked[:count] > ranked[count]]
    if len(above) == 0:  # a tie across the cut: nobody of the tie is above it
        return float(min(1.0, np.nextafter(np.float32(ranked[count]), np.float32(2.0))))
    return (float(above[-1]) + float(ranked[count])) / 2.0


def score_bands(probability: Array, thresholds: Thresholds) -> tuple[Band, ...]:
    """minimal, low, medium by share of events; high from the review threshold, critical from the decline threshold."""
    shares = [(name, float(np.quantile(probability, q)) if q else 0.0) for name, q in _BAND_QUANTILES]
    bands = [Band(name=name, minimum=min(minimum, thresholds.review)) for name, minimum in shares]
    bands.append(Band(name="high", minimum=thresholds.review))
    bands.append(Band(name="critical", minimum=thresholds.decline))
    return tuple(bands)
