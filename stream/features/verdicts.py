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

    def __init__(self, age_ms: NDArray[np.uint64], verdict: NDArray[np.uint8], delay_ms: int) -> None:
        self._age, self._verdict, self._delay = age_ms, verdict, delay_ms
        self.any = bool(verdict.any())
        """Whether there is any verdict at all; mostly there is none."""

    def _fraud(self, unexplained: bool) -> Bools:
        """(n, 64)"""
        return self._verdict == UNEXPLAINED if unexplained else self._verdict >= FRAUD

    def frauds(self, window: str, *, unexplained: bool) -> F64:
        """Confirmed frauds among the events of the last (delay + window)."""
        if not self.any:
            return np.zeros(len(self._age))
        inside = self._age < np.uint64(self._delay + window_ms(window))
        return count_true(inside & self._fraud(unexplained)).astype(np.float64)

    def share(self, window: str, *, unexplained: bool) -> F64:
        """(frauds + 0.01) / (events + 1) of the window before the delay."""
        inside = (self._age >= np.uint64(self._delay)) & (self._age < np.uint64(self._delay + window_ms(window)))
        events = count_true(inside)
        frauds = count_true(inside & self._fraud(unexplained)) if self.any else np.zeros_like(events)
        share: F64 = (frauds + 0.01) / (events + 1.0)
        return share

    @cached_property
    def _genuine_age(self) -> NDArray[np.uint64]:
        """Age of the newest event known to be genuine; beyond any age where there is none."""
        old = (self._age >= np.uint64(self._delay)) & (self._age < NO_AGE)
        if self.any:
            old = (old & (self._verdict < FRAUD)) | ((self._verdict == GENUINE) & (self._age < NO_AGE))
        age: NDArray[np.uint64] = np.where(old, self._age, NO_AGE).min(axis=1)
        return age

    @property
    def days_since_genuine(self) -> F64:
        """NaN where no remembered event is known to be genuine."""
        return np.where(self._genuine_age < NO_AGE, self._genuine_age.astype(np.float64) / _DAY_MS, np.nan)

    def streak(self, *, unexplained: bool) -> tuple[F64, F64]:
        """Confirmed frauds since the newest event known to be genuine, and days since the first of them."""
        if not self.any:
            return np.zeros(len(self._age)), np.full(len(self._age), np.nan)
        streak = self._fraud(unexplained) & (self._age < self._genuine_age[:, None])
        length = count_true(streak).astype(np.float64)
        age = np.where(streak, self._age, np.uint64(0)).max(axis=1).astype(np.float64) / _DAY_MS
        return length, np.where(length > 0, age, np.nan)


def count_true(mask: Bools) -> I64:
    """(n,): how many of 64 are set. Eight bytes are added at once, and then the bytes of the sum."""
    words = np.ascontiguousarray(mask).view(np.uint64)
    assert words.shape[1] * 8 == RING
    total: I64 = ((words.sum(axis=1) * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64)
    return total
