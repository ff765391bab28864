"""The score scale: 0 to 999, linear in log-odds between four fixed points.

    probability   1e-6 or less   review threshold   decline threshold   1 - 1e-6 or more
    score               0              600                 850                999

Between two points every doubling of the odds adds the same number of points: with `width` the distance of
the two in log-odds and `span` in points, `span * ln 2 / width`. The scale is monotone, and a score reaches
600 exactly when the probability reaches the review threshold (850: decline), so an operator reads a decision
off the number whatever model is in use. A plain floor(1000 p) would put nearly all payments at 0, and one
straight line through both thresholds would run off both ends when they lie close together. What the number
means in absolute terms moves with the thresholds; the record's probability does not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.events.records import MAX_SCORE

NO_SCORE = -1
"""In place of a score where there is no probability (NaN)."""

_MOST_LOG_ODDS = float(np.log((1 - 1e-6) / 1e-6))


def log_odds(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln(p / (1 - p)), held within that of 1e-6 and of 1 - 1e-6. Any shape; NaN stays NaN."""
    with np.errstate(divide="ignore"):
        odds: NDArray[np.float64] = np.log(probability) - np.log1p(-probability)
    return odds.clip(-_MOST_LOG_ODDS, _MOST_LOG_ODDS)


class ScoreScale:
    """The map from probability to score for one pair of thresholds."""

    def __init__(self, review: float, decline: float, review_score: int, decline_score: int) -> None:
        """Thresholds are probabilities, 0 <= review <= decline <= 1; scores 0 < review < decline <= 999."""
        bounds = log_odds(np.array([review, decline], dtype=np.float64))
        self._thresholds = (review, decline)
        self._knots = (-_MOST_LOG_ODDS, float(bounds[0]), float(bounds[1]), _MOST_LOG_ODDS)
        self._scores = (0, review_score, decline_score, MAX_SCORE + 1)

    def scores(self, probability: NDArray[np.float64]) -> NDArray[np.int16]:
        """(B,) scores of (B,) probabilities; NO_SCORE for NaN."""
        review, decline = self._thresholds
        # The segment is chosen by the probability itself: rounding must never part score and decision.
        segment = (probability >= review).astype(np.intp) + (probability >= decline)
        knots, scores = np.array(self._knots), np.array(self._scores, dtype=np.float64)
        low, high = knots[segment], knots[segment + 1]
        share = (log_odds(probability) - low) / np.maximum(high - low, 1e-12)
        first, end = scores[segment], scores[segment + 1]
        points = np.clip(np.floor(first + share * (end - first)), first, end - 1)
        return np.where(np.isnan(probability), NO_SCORE, np.nan_to_num(points)).astype(np.int16)
