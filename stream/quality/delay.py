"""How long fraud labels take, estimated from those that have arrived.

Young events have only had time for short delays, so the plain distribution of the delays seen is too short.
The reverse-time hazard corrects for that (Lagakos, Barraj, De Gruttola, Biometrika 1988; actuaries call it the
chain ladder): of the labels with a delay of at most d, of events old enough for d, which share had exactly d?
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.features.batch import F64, I64

BINS_PER_MATURITY = 24
BINS = 2 * BINS_PER_MATURITY
"""Delays beyond twice the maturity are not seen: completeness is relative to them."""
GROUPS = ("approved", "suspicious")
"""Estimated apart: an analyst sees a suspicious event within hours, a chargeback takes weeks."""
LEAST = 0.2
"""Completeness below this counts as this much: a handful of labels must not be multiplied without bound."""


class LabelDelay:
    """Delays of fraud labels by group and by the age of their event. Memory: BINS numbers per step of event time."""

    def __init__(self, maturity_ms: int) -> None:
        self.step_ms = max(1, maturity_ms // BINS_PER_MATURITY)
        self._cohorts: dict[int, F64] = {}

    def add(self, time_ms: I64, known_ms: I64, group: NDArray[np.int64], weight: F64) -> None:
        """N labels of fraud: the event's time, when the label became known, the place in GROUPS, and its weight."""
        cohort = time_ms // self.step_ms
        delay = np.clip((known_ms - time_ms) // self.step_ms, 0, None)
        for number in np.unique(cohort).tolist():
            here = (cohort == number) & (delay < BINS)
            counts = self._cohorts.setdefault(number, np.zeros((len(GROUPS), BINS)))
            np.add.at(counts, (group[here], delay[here]), weight[here])

    def forget_before(self, time_ms: int) -> None:
        """Drops cohorts that are wholly older."""
        first = time_ms // self.step_ms
        for number in [number for number in self._cohorts if number < first]:
            del self._cohorts[number]

    def distribution(self, now_ms: int) -> F64:
        """(groups, BINS): the share of frauds that are labelled within so many whole steps; the last column is 1."""
        exact = np.zeros((len(GROUPS), BINS))
        up_to = np.zeros((len(GROUPS), BINS))
        for number, counts in self._cohorts.items():
            seen = np.clip(now_ms // self.step_ms - number - 1, 0, BINS)
            exact[:, :seen] += counts[:, :seen]
            up_to[:, :seen] += np.cumsum(counts[:, :seen], axis=1)
        hazard = np.divide(exact, up_to, out=np.zeros_like(exact), where=up_to > 0)
        # hazard[:, 0] is 1 by construction: F(d) is the product over all longer delays.
        later = np.cumprod((1 - hazard)[:, :0:-1], axis=1)[:, ::-1]
        whole: F64 = np.concatenate([later, np.ones((len(GROUPS), 1))], axis=1)
        return whole

    def completeness(self, now_ms: int, age_ms: I64) -> F64:
        """(groups, N): the share of its frauds that an event of this age has been labelled with. LEAST to 1."""
        distribution = np.concatenate([np.zeros((len(GROUPS), 1)), self.distribution(now_ms)], axis=1)
        steps = np.asarray(age_ms, dtype=np.float64) / self.step_ms
        whole = np.arange(BINS + 1)
        rows = np.array([np.interp(steps, whole, row) for row in distribution])
        known: F64 = np.clip(rows, LEAST, 1.0)
        return known

    def state(self) -> tuple[I64, F64]:
        """Cohort numbers (K,) and counts (K, groups, BINS), for a checkpoint."""
        numbers = sorted(self._cohorts)
        counts = [self._cohorts[number] for number in numbers]
        return np.array(numbers, dtype=np.int64), np.array(counts).reshape(len(numbers), len(GROUPS), BINS)

    def load(self, numbers: I64, counts: F64) -> None:
        """Takes the state of a checkpoint."""
        self._cohorts = dict(zip(numbers.tolist(), counts.astype(np.float64), strict=True))
