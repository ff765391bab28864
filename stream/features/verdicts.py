"""What is known of an account's remembered events: which were frauds, and which are known to be none."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stream.features.rows import FRAUD, GENUINE, RING, UNEXPLAINED
from stream.features.spec import window_ms

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

NO_AGE = np.uint64(1 << 61)
"""Ages in milliseconds from here on are of events that are later, or not there."""
_DAY_MS = 86_400_000.0


class Verdicts:
    """What is known of the remembered events of n accounts: (n,) each."""

    def __init__(self, age_ms: NDArray[np.uint64], judged: I64, verdict: NDArray[np.uint8], delay_ms: int) -> None:
        """`age_ms` (n, 64); `judged` (j,): the few accounts that ever had a label, `verdict` (j, 64): theirs."""
        self._age, self._judged, self._verdict, self._delay = age_ms, judged, verdict, np.uint64(delay_ms)

    @cached_property
    def _judged_age(self) -> NDArray[np.uint64]:
        return self._age[self._judged]

    def _fraud(self, unexplained: bool) -> Bools:
        """(j, 64)"""
        return self._verdict == UNEXPLAINED if unexplained else self._verdict >= FRAUD

    def _of_judged(self, values: I64 | F64, others: float) -> F64:
        """(n,): these values for the judged accounts (j,), and `others` for the others."""
        result = np.full(len(self._age), others)
        result[self._judged] = values
        return result

    def frauds(self, window: str, *, unexplained: bool) -> F64:
        """Confirmed frauds among the events of the last (delay + window)."""
        inside = self._judged_age < self._delay + np.uint64(window_ms(window))
        return self._of_judged(count_true(inside & self._fraud(unexplained)), 0.0)

    def share(self, window: str, *, unexplained: bool) -> F64:
        """(frauds + 0.01) / (events + 1) of the window before the delay."""
        width = np.uint64(window_ms(window))
        # Ages below the delay wrap round to huge ones.
        inside = self._age - self._delay < width
        frauds = self._of_judged(count_true(inside[self._judged] & self._fraud(unexplained)), 0.0)
        return (frauds + 0.01) / (count_true(inside) + 1.0)

    @cached_property
    def _genuine_age(self) -> NDArray[np.uint64]:
        """Age of the newest event known to be genuine; beyond any age where there is none."""
        newest = (self._age - self._delay).min(axis=1)
        newest = np.where(newest < NO_AGE, newest + self._delay, NO_AGE)
        age, verdict = self._judged_age, self._verdict
        genuine = (age < NO_AGE) & (((age >= self._delay) & (verdict < FRAUD)) | (verdict == GENUINE))
        newest[self._judged] = np.where(genuine, age, NO_AGE).min(axis=1)
        return newest

    @property
    def days_since_genuine(self) -> F64:
        """NaN where no remembered event is known to be genuine."""
        return np.where(self._genuine_age < NO_AGE, self._genuine_age.astype(np.float64) / _DAY_MS, np.nan)

    def streak(self, *, unexplained: bool) -> tuple[F64, F64]:
        """Confirmed frauds since the newest event known to be genuine, and days since the first of them."""
        streak = self._fraud(unexplained) & (self._judged_age < self._genuine_age[self._judged, None])
        length = count_true(streak)
        age = np.where(streak, self._judged_age, np.uint64(0)).max(axis=1).astype(np.float64) / _DAY_MS
        return self._of_judged(length, 0.0), self._of_judged(np.where(length > 0, age, np.nan), np.nan)


def count_true(mask: Bools) -> I64:
    """(n,): how many of 64 are set. Eight bytes are added at once, and then the bytes of the sum."""
    words = np.ascontiguousarray(mask).reshape(-1, RING).view(np.uint64)
    total: I64 = ((words.sum(axis=1) * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64)
    return total
