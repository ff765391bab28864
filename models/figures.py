"""Figures of merit of scored events, as the field reports them, with intervals.

Names: `recall_at_fpr_0_1pct` is the share of frauds caught where 0.1 % of the genuine events are; `card_precision_100`
and `recall_at_100_alerts` look at the 100 best cards or events of each day.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.evaluate import expected_calibration_error

Array = NDArray[Any]

DAY_MS = 86_400_000
FALSE_POSITIVE_RATES = ((0.0001, "0_01pct"), (0.001, "0_1pct"), (0.01, "1pct"))
PER_DAY = (20, 100)
"""Cards, and alerts, per day that somebody could look at."""
INTERVAL = (0.025, 0.975)
_RESAMPLES = 200
_RELIABILITY_SHARES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)


@dataclass(frozen=True, slots=True)
class Scored:
    """N scored events whose label is known. Arrays are (N,)."""

    probability: Array
    fraud: NDArray[np.bool_]
    time_ms: NDArray[np.int64]
    account: NDArray[np.int32]
    amount: Array
    """NaN where it had no rate."""
    review: NDArray[np.bool_]
    """At or above the review threshold of its model, declines included."""
    decline: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.fraud)

    def take(self, rows: Array) -> Scored:
        """The events at these indices or of this mask."""
        return Scored(*(getattr(self, name)[rows] for name in _FIELDS))


_FIELDS = tuple(field.name for field in dataclasses.fields(Scored))


def joined(parts: Sequence[Scored]) -> Scored:
    """The events of all parts."""
    return Scored(*(np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS))


class Ranking:
    """Events by falling probability, ties together: what AUC and its kin are read from, quickly for many weights."""

    def __init__(self, probability: Array, fraud: NDArray[np.bool_]) -> None:
        self._order = np.argsort(-probability, kind="stable")
        ranked = probability[self._order]
        self._fraud = fraud[self._order]
        self._last = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
        self.thresholds: Array = ranked[self._last]

    def counts(self, weight: Array | None = None) -> tuple[Array, Array]:
        """Weighted frauds and genuine events at or above each distinct threshold."""
        ranked = np.ones(len(self._order)) if weight is None else weight[self._order]
        frauds = np.cumsum(ranked * self._fraud)[self._last]
        return frauds, np.cumsum(ranked)[self._last] - frauds

    def figures(self, weight: Array | None = None) -> dict[str, float]:
        """AUC, average precision and recall at false-positive rates; NaN without both kinds of events."""
        caught, false = self.counts(weight)
        names = ["auc", "average_precision", *(f"recall_at_fpr_{name}" for _, name in FALSE_POSITIVE_RATES)]
        if caught[-1] <= 0 or false[-1] <= 0:
            return dict.fromkeys(names, float("nan"))
        recall, fpr = caught / caught[-1], false / false[-1]
        precision = caught / np.maximum(caught + false, 1e-12)
        values = [
            float(np.trapezoid(np.r_[0.0, recall], np.r_[0.0, fpr])),
            float(np.sum(np.diff(recall, prepend=0.0) * precision)),
            *(_at(recall, fpr, rate) for rate, _ in FALSE_POSITIVE_RATES),
        ]
        return dict(zip(names, values, strict=True))


def _at(recall: Array, fpr: Array, rate: float) -> float:
    """The recall at the lowest threshold whose false-positive rate is at most `rate`."""
    reached = int(np.searchsorted(fpr, rate * (1 + 1e-12), side="right"))
    return float(recall[reached - 1]) if reached else 0.0


def figures(scored: Scored) -> dict[str, float]:
    """All figures of one set of events. NaN where a figure has no meaning."""
    found = Ranking(scored.probability, scored.fraud).figures()
    found["ece"] = expected_calibration_error(scored.probability, scored.fraud)
    for count in PER_DAY:
        found[f"card_precision_{count}"] = float(np.mean(card_precision_by_day(scored, count)))
        found[f"recall_at_{count}_alerts"] = recall_at_alerts(scored, count)
    for name, alerted in (("review", scored.review), ("decline", scored.decline)):
        found |= {f"{figure}_at_{name}": value for figure, value in at_threshold(scored, alerted).items()}
    found["fraud_rate"] = float(np.mean(scored.fraud)) if len(scored) else float("nan")
    found["mean_probability"] = float(np.mean(scored.probability)) if len(scored) else float("nan")
    return found


def at_threshold(scored: Scored, alerted: NDArray[np.bool_]) -> dict[str, float]:
    """Accuracy, precision, recall, F1, share of events alerted and of the fraudulent money caught."""
    fraud = scored.fraud
    caught, alerts, frauds = int((alerted & fraud).sum()), int(alerted.sum()), int(fraud.sum())
    money = np.nan_to_num(scored.amount, nan=0.0).astype(np.float64)
    nothing = float("nan")
    stolen = float(money[fraud].sum())
    return {
        "accuracy": float(np.mean(alerted == fraud)) if len(fraud) else nothing,
        "precision": caught / alerts if alerts else nothing,
        "recall": caught / frauds if frauds else nothing,
        "f1": 2 * caught / (alerts + frauds) if alerts + frauds else nothing,
        "alert_rate": alerts / len(fraud) if len(fraud) else nothing,
        "money_recall": float(money[fraud & alerted].sum()) / stolen if stolen > 0 else nothing,
    }


def card_precision_by_day(scored: Scored, count: int) -> Array:
    """(days,): of the `count` cards with the highest score of a day, the share with a fraud that day.

    A card that was found so is blocked: it does not count on later days. Le Borgne, Siblini, Lebichot and
    Bontempi, "Reproducible Machine Learning for Credit Card Fraud Detection", 2022, chapter 4.
    """
    blocked: set[int] = set()
    shares = []
    for rows in _days(scored):
        rows = rows[~np.isin(scored.account[rows], list(blocked))]  # noqa: PLW2901
        best: dict[int, float] = {}
        defrauded: set[int] = set()
        columns = (scored.account[rows].tolist(), scored.probability[rows].tolist(), scored.fraud[rows].tolist())
        for card, probability, fraud in zip(*columns, strict=True):
            best[card] = max(best.get(card, 0.0), probability)
            if fraud:
                defrauded.add(card)
        top = sorted(best, key=lambda card: -best[card])[:count]
        found = defrauded.intersection(top)
        blocked |= found
        shares.append(len(found) / count)
    return np.array(shares)


def recall_at_alerts(scored: Scored, per_day: int) -> float:
    """The share of frauds among the `per_day` events with the highest score of each day."""
    caught = 0
    for rows in _days(scored):
        top = rows[np.argsort(-scored.probability[rows], kind="stable")[:per_day]]
        caught += int(scored.fraud[top].sum())
    frauds = int(scored.fraud.sum())
    return caught / frauds if frauds else float("nan")


def _days(scored: Scored) -> list[Array]:
    """The rows of each day (UTC), in order."""
    day = scored.time_ms // DAY_MS
    order = np.argsort(day, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(day[order])) + 1) if len(order) else []


def intervals(scored: Scored, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % intervals: of ranking and threshold figures by resampling whole accounts, of card precision by days.

    Accounts, because frauds of one account come together and are not independent. Poisson bootstrap: each
    account gets a weight drawn from Poisson(1).
    """
    random = np.random.default_rng(seed)
    _, account = np.unique(scored.account, return_inverse=True)
    ranking = Ranking(scored.probability, scored.fraud)
    money = np.nan_to_num(scored.amount, nan=0.0) * scored.fraud
    drawn: dict[str, list[float]] = {}
    for _ in range(_RESAMPLES):
        weight = random.poisson(1.0, int(account.max(initial=-1)) + 1)[account].astype(np.float64)
        found = ranking.figures(weight)
        for name, above in (("review", scored.review), ("decline", scored.decline)):
            alerted = above * weight
            for figure, part, whole in (
                ("recall", alerted * scored.fraud, weight * scored.fraud),
                ("precision", alerted * scored.fraud, alerted),
                ("money_recall", alerted * money, weight * money),
            ):
                found[f"{figure}_at_{name}"] = float(part.sum() / whole.sum()) if whole.sum() > 0 else float("nan")
        for name, value in found.items():
            drawn.setdefault(name, []).append(value)
    for count in PER_DAY:
        days = card_precision_by_day(scored, count)
        picked = random.integers(0, max(1, len(days)), (_RESAMPLES, len(days)))
        drawn[f"card_precision_{count}"] = days[picked].mean(axis=1).tolist() if len(days) else []
    return {name: _interval(values) for name, values in drawn.items()}


def _interval(values: list[float]) -> tuple[float, float]:
    present = [value for value in values if np.isfinite(value)]
    if not present:
        return float("nan"), float("nan")
    low, high = np.quantile(present, INTERVAL)
    return float(low), float(high)


def reliability(scored: Scored) -> list[dict[str, float]]:
    """Stated and observed rate by bins of rank, finer towards the top, where nearly all frauds are."""
    edges = np.unique(np.quantile(scored.probability, _RELIABILITY_SHARES))
    which = np.searchsorted(edges, scored.probability, side="right")
    return [
        {
            "events": int(rows.sum()),
            "stated": float(scored.probability[rows].mean()),
            "observed": float(scored.fraud[rows].mean()),
        }
        for rows in (which == number for number in range(len(edges) + 1))
        if rows.any()
    ]


def curves(scored: Scored, points: int = 200) -> dict[str, list[tuple[float, float]]]:
    """`roc` (false-positive rate, recall) and `precision_recall` (recall, precision), thinned to about `points`."""
    caught, false = Ranking(scored.probability, scored.fraud).counts()
    recall, fpr = caught / max(caught[-1], 1), false / max(false[-1], 1)
    precision = caught / np.maximum(caught + false, 1e-12)
    # Evenly spaced along both axes: a straight stretch needs few points.
    kept = np.unique(
        np.r_[
            [0, len(recall) - 1],
            *(
                np.searchsorted(axis, np.linspace(0, axis[-1], points // 2)).clip(max=len(axis) - 1)
                for axis in (recall, fpr)
            ),
        ].astype(np.int64)
    )
    return {
        "roc": [(0.0, 0.0), *zip(fpr[kept].tolist(), recall[kept].tolist(), strict=True)],
        "precision_recall": list(zip(recall[kept].tolist(), precision[kept].tolist(), strict=True)),
    }
