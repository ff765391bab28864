"""What a report must say aloud."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.leaks import SUSPICIOUS_AUC

IMPLAUSIBLE_AUC = 0.999


def warnings_of(models: Mapping[str, Mapping[str, Any]], suspicious: Mapping[str, float]) -> list[str]:
    """Results too good to be true, in words."""
    found = [
        f"Too good to be true: {name} alone tells fraud with an AUC of {auc:.4f} (above {SUSPICIOUS_AUC}). "
        "Look whether it holds something that was written after the verdict."
        for name, auc in suspicious.items()
    ]
    high = [name for name, model in models.items() if (model["mean"]["auc"] or 0.0) > IMPLAUSIBLE_AUC]
    if high:
        found.append(
            f"{', '.join(high)}: an AUC above {IMPLAUSIBLE_AUC} is not seen on real payments. Synthetic data, or a "
            "leak: see which features carry it."
        )
    return found
