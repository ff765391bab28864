"""Online quality the slow way: every score and label is kept, and each figure is a loop over all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

HOUR_MS = 3_600_000
EDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Score:
    identity: int
    time_ms: int
    amount_minor: int
    probability: float
    decision: int
    model: str


@dataclass(frozen=True)
class Verdict:
    identity: int
    time_ms: int
    known_ms: int
    fraud: bool


def naive_counts(
    scores: list[Score], labels: list[Verdict], *, maturity_ms: int, window_ms: int, model: str
) -> dict[str, Any]:
    """Uncorrected figures of one model and window; labels in the order in which they came."""
    now = max(score.time_ms for score in scores)
    end_hour = (now - maturity_ms) // HOUR_MS
    verdict = {(label.identity, label.time_ms // HOUR_MS): label.fraud for label in labels}
    found: dict[str, Any] = dict.fromkeys(
        ("scored", "suspicious", "declined", "caught", "missed", "labelled_fraud", "labelled_genuine"), 0
    )
    found |= {"fraud_amount": 0.0, "caught_amount": 0.0, "with_model": [0] * 10, "predicted": [0.0] * 10}
    found |= {"observed": [0] * 10}
    for score in scores:
        hour = score.time_ms // HOUR_MS
        if score.model != model or not end_hour - window_ms // HOUR_MS <= hour < end_hour:
            continue
        is_fraud = verdict.get((score.identity, hour))
        suspicious = score.decision > 0
        found["scored"] += 1
        found["suspicious"] += suspicious
        found["declined"] += score.decision == 2
        found["labelled_fraud"] += is_fraud is True
        found["labelled_genuine"] += is_fraud is False
        if is_fraud:
            found["caught" if suspicious else "missed"] += 1
            found["fraud_amount"] += score.amount_minor / 100
            found["caught_amount"] += score.amount_minor / 100 if suspicious else 0
        if not math.isnan(score.probability):
            place = sum(score.probability >= edge for edge in EDGES)
            found["with_model"][place] += 1
            found["predicted"][place] += score.probability
            found["observed"][place] += bool(is_fraud)
    return found


def naive_delay_distribution(delays: list[tuple[int, int]], now_step: int, bins: int) -> list[float]:
    """F(d) by the reverse-time product: `delays` are (cohort, delay) in steps; the cohort's labels are seen while
    its events are older."""
    distribution = []
    for d in range(bins):
        product = 1.0
        for k in range(d + 1, bins):
            seen = [(cohort, delay) for cohort, delay in delays if now_step - cohort - 1 > k]
            exact = sum(1 for _, delay in seen if delay == k)
            up_to = sum(1 for _, delay in seen if delay <= k)
            product *= 1 - (exact / up_to if up_to else 0)
        distribution.append(product)
    return distribution
