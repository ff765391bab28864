"""Figures of merit against scikit-learn and against plain loops, and what their intervals cover."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from models.dataset import TrainingSet
from models.figures import (
    DAY_MS,
    Ranking,
    Scored,
    at_threshold,
    card_precision_by_day,
    curves,
    figures,
    intervals,
    joined,
    recall_at_alerts,
    reliability,
)
from models.leaks import suspicious_columns
from models.report.document import segments
from tests.unit.model_fixtures import planted


def drawn(seed: int, size: int, *, values: int = 10_000, cards: int = 30, days: int = 5) -> Scored:
    random = np.random.default_rng(seed)
    probability = random.integers(0, values + 1, size) / values
    fraud = random.random(size) < 0.1 + 0.5 * probability
    return Scored(
        probability=probability,
        fraud=fraud,
        time_ms=np.sort(random.integers(0, days * DAY_MS, size)),
        account=random.integers(0, cards, size).astype(np.int32),
        amount=np.where(random.random(size) < 0.1, np.nan, random.exponential(100, size)),
        review=probability >= 0.8,
        decline=probability >= 0.95,
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 200), st.sampled_from([3, 40, 10_000]))
def test_ranking_figures_are_scikit_learns_also_weighted_and_with_ties(seed: int, size: int, values: int) -> None:
    scored = drawn(seed, size, values=values)
    weight = np.random.default_rng(seed).poisson(1.0, size).astype(np.float64)
    for weights in (None, weight):
        kept = np.ones(size) if weights is None else weights
        found = Ranking(scored.probability, scored.fraud).figures(weights)
        if not kept[scored.fraud].any() or not kept[~scored.fraud].any():
            assert np.isnan(found["auc"])
            continue
        arguments: Any = (scored.fraud, scored.probability)
        assert found["auc"] == pytest.approx(roc_auc_score(*arguments, sample_weight=kept))
        assert found["average_precision"] == pytest.approx(average_precision_score(*arguments, sample_weight=kept))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 300))
def test_recall_at_a_false_positive_rate_is_that_of_the_best_threshold(seed: int, size: int) -> None:
    scored = drawn(seed, size, values=50)
    if scored.fraud.all() or not scored.fraud.any():
        return
    best = 0.0
    for threshold in np.unique(scored.probability):
        alerted = scored.probability >= threshold
        if (alerted & ~scored.fraud).sum() / (~scored.fraud).sum() <= 0.01:
            best = max(best, (alerted & scored.fraud).sum() / scored.fraud.sum())
    found = Ranking(scored.probability, scored.fraud).figures()
    assert found["recall_at_fpr_1pct"] == pytest.approx(best)


def test_card_precision_blocks_a_card_once_it_was_found() -> None:
    scored = Scored(
        probability=np.array([0.9, 0.8, 0.7, 0.9, 0.6, 0.5]),
        fraud=np.array([True, False, True, True, True, False]),
        time_ms=np.array([1, 2, 3, 1 + DAY_MS, 2 + DAY_MS, 3 + DAY_MS]),
        account=np.array([1, 2, 3, 1, 3, 4], dtype=np.int32),
        amount=np.ones(6),
        review=np.zeros(6, np.bool_),
        decline=np.zeros(6, np.bool_),
    )
    # Day 1: cards 1 and 2 are looked at, 1 is found. Day 2: 1 is blocked, 3 and 4 are looked at, 3 is found.
    assert card_precision_by_day(scored, 2).tolist() == [0.5, 0.5]
    assert recall_at_alerts(scored, 1) == pytest.approx(2 / 4)
    assert recall_at_alerts(scored, 2) == pytest.approx(3 / 4)


def test_threshold_figures_counted_by_hand() -> None:
    scored = drawn(1, 6)
    fraud = np.array([True, True, False, False, False, True])
    alerted = np.array([True, False, True, False, False, False])
    amount = np.array([30.0, 10.0, 5.0, 5.0, 5.0, np.nan])
    scored = Scored(scored.probability, fraud, scored.time_ms, scored.account, amount, alerted, alerted)
    found = at_threshold(scored, alerted)
    assert found["precision"] == 0.5
    assert found["recall"] == pytest.approx(1 / 3)
    assert found["f1"] == pytest.approx(2 * 0.5 * (1 / 3) / (0.5 + 1 / 3))
    assert found["accuracy"] == 0.5
    assert found["alert_rate"] == pytest.approx(1 / 3)
    assert found["money_recall"] == 0.75
    nothing = at_threshold(scored.take(fraud), np.zeros(3, np.bool_))
    assert np.isnan(nothing["precision"])
    assert nothing["recall"] == 0.0


def test_every_figure_has_a_value_and_intervals_hold_it() -> None:
    scored = drawn(3, 4000, cards=400)
    found, around = figures(scored), intervals(scored)
    assert all(np.isfinite(value) for value in found.values())
    assert set(around) < set(found)
    for name, (low, high) in around.items():
        assert low <= found[name] <= high, name
        assert high - low < 0.4


def test_intervals_are_wider_when_frauds_come_in_clusters() -> None:
    scored = drawn(4, 4000, cards=4000)
    few = Scored(
        scored.probability,
        scored.fraud,
        scored.time_ms,
        # The same events, but every account is all fraud or all genuine.
        np.where(scored.fraud, scored.account % 20, 1000 + scored.account).astype(np.int32),
        scored.amount,
        scored.review,
        scored.decline,
    )
    # 20 clusters of frauds instead of some thousand.
    width, clustered = (np.subtract(*intervals(part)["average_precision"][::-1]) for part in (scored, few))
    assert clustered > 1.1 * width


def test_curves_and_reliability_agree_with_the_figures() -> None:
    scored = drawn(5, 3000)
    drawn_curves = curves(scored)
    fpr, recall = np.array(drawn_curves["roc"]).T
    auc = roc_auc_score(scored.fraud, scored.probability)
    assert float(np.trapezoid(recall, fpr)) == pytest.approx(auc, abs=0.01)
    assert len(fpr) < 420
    found = reliability(scored)
    assert sum(bin_["events"] for bin_ in found) == len(scored)
    assert sum(bin_["events"] * bin_["observed"] for bin_ in found) == pytest.approx(scored.fraud.sum())
    assert len(joined([scored, scored])) == 2 * len(scored)


# --- leaks and segments


def leaky(dataset: TrainingSet, place: int, noise: float) -> TrainingSet:
    random = np.random.default_rng(0)
    dataset.aggregates[:, place] = -dataset.label + noise * random.normal(size=len(dataset))
    return dataset


def test_a_column_that_has_seen_the_answer_is_named() -> None:
    assert suspicious_columns(planted(1, aggregate_signal=True)) == {}
    found = suspicious_columns(leaky(planted(1), 2, 0.1))
    assert list(found) == ["a2"]
    assert found["a2"] > 0.99
    assert suspicious_columns(leaky(planted(1), 2, 1.0)) == {}


def test_a_category_and_a_missing_value_can_leak_too() -> None:
    dataset = planted(1)
    place = [column.name for column in dataset.domain.aggregate_columns].index("ac0")
    dataset.aggregates[:, place] = np.where(dataset.label == 1, 7, np.arange(len(dataset)) % 5)
    assert list(suspicious_columns(dataset)) == ["ac0"]
    missing = planted(2)
    missing.aggregates[:, 1] = np.where(missing.label == 1, np.nan, 1.0)
    assert list(suspicious_columns(missing)) == ["a1"]


def test_the_parts_of_a_segment_hold_every_event_once() -> None:
    dataset = planted(1, 500)
    index = np.arange(100, 400)
    for _, parts in segments(dataset, index):
        assert (np.sum([rows for _, rows in parts], axis=0) == 1).all()
