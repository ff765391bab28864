"""The account's own norm: mean and spread of ln(1 + amount), without confirmed fraud.

Sums of integers, so that a fraud can be taken out again when it is confirmed. Until then it may do
little harm: once the norm has some events, an amount counts at most two spreads from their mean
(winsorised; Dixon and Tukey 1968).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

LOG_SCALE = 1000
"""The sums hold round(1000 * ln(1 + amount))."""
NORM = ("norm_n", "norm_sum", "norm_squares")
"""The row's fields: how many, their sum, the sum of their squares."""
_CLIP_AFTER = 3
_CLIP_SPREADS = 2.0


def norm_mean(n: I64, total: I64) -> F64:
    """Mean of ln(1 + amount), (n,); NaN without a past. A label of an event never seen may leave sums below 0."""
    return np.where(n > 0, np.maximum(total, 0) / np.maximum(n, 1) / LOG_SCALE, np.nan)


def norm_spread(n: I64, total: I64, squares: I64) -> F64:
    """Standard deviation of ln(1 + amount), (n,), shrunk towards 1 as if by two events of spread 1."""
    count = np.maximum(n, 0).astype(np.float64)
    mean = np.where(n > 0, total / np.maximum(n, 1), 0.0)
    variance = np.maximum(squares - count * mean * mean, 0.0) / LOG_SCALE**2
    return np.sqrt((variance + 2.0) / (count + 2.0))


def clipped_to_norm(scaled: F64, n: I64, total: I64, squares: I64) -> I64:
    """What amounts (n,), given as 1000 ln(1 + x), bring into the norms (n,) of their accounts."""
    mean, spread = norm_mean(n, total), norm_spread(n, total, squares)
    low = np.where(n >= _CLIP_AFTER, np.rint(LOG_SCALE * (mean - _CLIP_SPREADS * spread)), -np.inf)
    high = np.where(n >= _CLIP_AFTER, np.rint(LOG_SCALE * (mean + _CLIP_SPREADS * spread)), np.inf)
    return np.clip(scaled, np.maximum(low, 0.0), high).astype(np.int64)


def is_weekend(hour: I64 | int) -> NDArray[np.bool_] | bool:
    """Whether an hour, counted from 1970, is of a Saturday or Sunday (UTC)."""
    return (hour + 72) % 168 >= 120  # 1 January 1970 was a Thursday
