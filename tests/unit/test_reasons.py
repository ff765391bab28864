"""Attribution against the exact Shapley value, and the words made from it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stream.decisions import attribution
from stream.decisions.attribution import Attribution, FeatureGroups, ModelInputs, Reference, ScoreFunction
from stream.decisions.reasons import Explainer
from stream.domains.payments import DOMAIN
from stream.errors import ConfigError
from stream.features.spec import Column, ReasonTemplate

NAMES = ("amount", "velocity", "merchant", "place", "time", "history")
STEP = tuple(Column(f"step_{group}_{n}", group) for group in NAMES[:5] for n in range(2))
AGGREGATES = tuple(Column(f"{group}_{n}", group) for group in NAMES for n in range(3))
GROUPS = FeatureGroups.of(STEP, AGGREGATES)
T, F, D, G = 4, len(STEP), len(AGGREGATES), len(NAMES)


def random_inputs(random: np.random.Generator, count: int) -> ModelInputs:
    steps = random.normal(size=(count, T, F)).astype(np.float32)
    lengths = random.integers(1, T + 1, count)
    steps[np.arange(T) >= lengths[:, None]] = 0
    return ModelInputs(steps, lengths, random.normal(size=(count, D)).astype(np.float32))


def random_reference(random: np.random.Generator) -> Reference:
    return Reference(random.normal(size=F).astype(np.float32) / 4, random.normal(size=D).astype(np.float32) / 4)


def random_net(random: np.random.Generator, curvature: float) -> ScoreFunction:
    """A recurrent cell over the steps and two layers over all: groups interact more with more curvature."""
    cell, own = random.normal(size=(F, 12)) * curvature / math.sqrt(F), random.normal(size=(12, 12)) / math.sqrt(12)
    mixed = random.normal(size=(12 + D, 24)) * curvature / math.sqrt(12 + D)
    out = random.normal(size=24)

    def score(steps: NDArray[Any], lengths: NDArray[Any], aggregates: NDArray[Any]) -> NDArray[Any]:
        hidden = np.zeros((len(steps), 12))
        for step in range(T):
            following = np.tanh(steps[:, step] @ cell + hidden @ own)
            hidden = np.where((step < lengths)[:, None], following, hidden)
        return np.asarray(np.tanh(np.concatenate([hidden, aggregates], axis=1) @ mixed) @ out)

    return score


def shapley(given: Attribution, score: ScoreFunction, inputs: ModelInputs) -> NDArray[np.float64]:
    """The exact value by its definition: all 2^G coalitions, one event at a time. (A, G)"""
    count = len(given.groups.names)
    result = np.zeros((len(inputs.steps), count))
    for event in range(len(inputs.steps)):
        value = {}
        for members in itertools.chain.from_iterable(itertools.combinations(range(count), n) for n in range(count + 1)):
            steps, aggregates = inputs.steps[event].copy(), inputs.aggregates[event].copy()
            for group in set(range(count)) - set(members):
                for column in np.flatnonzero(given.groups.of_step == group):
                    steps[: inputs.lengths[event], column] = given.reference.step[column]
                for column in np.flatnonzero(given.groups.of_aggregate == group):
                    aggregates[column] = given.reference.aggregates[column]
            value[members] = float(score(steps[None], inputs.lengths[event : event + 1], aggregates[None])[0])
        for group in range(count):
            for members, scored in value.items():
                if group not in members:
                    weight = 1 / (count * math.comb(count - 1, len(members)))
                    result[event, group] += weight * (value[tuple(sorted((*members, group)))] - scored)
    return result


def test_groups_keep_the_order_of_first_appearance() -> None:
    assert GROUPS.names == NAMES
    assert GROUPS.of_step.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert GROUPS.of_aggregate.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5]
    assert FeatureGroups.of(DOMAIN.step_columns, DOMAIN.aggregate_columns).names[:2] == ("amount", "velocity")


@pytest.mark.parametrize("seed", range(3))
def test_it_is_exact_where_groups_interact_in_pairs(seed: int) -> None:
    random = np.random.default_rng(seed)
    given = Attribution(GROUPS, random_reference(random))
    matrix = random.normal(size=(F + D, F + D))

    def score(steps: NDArray[Any], lengths: NDArray[Any], aggregates: NDArray[Any]) -> NDArray[Any]:
        joined = np.concatenate([steps.sum(axis=1), aggregates], axis=1).astype(np.float64)
        return np.asarray(np.einsum("ni,ij,nj->n", joined, matrix, joined) + joined.sum(axis=1))

    inputs = random_inputs(random, 6)
    found, exact = given.contributions(score, inputs), shapley(given, score, inputs)
    np.testing.assert_allclose(found, exact, atol=1e-3)
    whole, usual = given.scores_keeping(np.array([[True] * G, [False] * G]), score, inputs).T
    np.testing.assert_allclose(found.sum(axis=1), whole - usual, atol=1e-3)


@pytest.mark.parametrize(("curvature", "largest_error"), [(0.5, 0.04), (1.0, 0.12), (2.0, 0.3)])
def test_its_error_on_random_nets_is_bounded(curvature: float, largest_error: float) -> None:
    """Errors relative to the largest exact contribution of the event: mean over events, of the worst group."""
    errors, first_agrees = [], []
    for seed in range(4):
        random = np.random.default_rng(seed)
        given, score = Attribution(GROUPS, random_reference(random)), random_net(random, curvature)
        inputs = random_inputs(random, 12)
        found, exact = given.contributions(score, inputs), shapley(given, score, inputs)
        errors.append(np.abs(found - exact).max(axis=1) / np.abs(exact).max(axis=1))
        first_agrees.append(found.argmax(axis=1) == exact.argmax(axis=1))
    assert np.mean(errors) < largest_error
    assert np.mean(first_agrees) > 0.8


def test_only_the_steps_within_the_length_are_replaced() -> None:
    random = np.random.default_rng(1)
    seen: list[NDArray[np.float32]] = []

    def score(steps: NDArray[Any], lengths: NDArray[Any], aggregates: NDArray[Any]) -> NDArray[Any]:
        seen.append(steps)
        return np.zeros(len(steps))

    given = Attribution(GROUPS, random_reference(random))
    inputs = random_inputs(random, 5)
    given.contributions(score, inputs)
    variants = seen[0].reshape(5, 2 * G + 2, T, F)
    past = np.arange(T) >= inputs.lengths[:, None]
    assert (variants.transpose(0, 2, 1, 3)[past] == 0).all()
    assert (variants[:, 0] == inputs.steps).all()
    assert (variants[~np.repeat(past[:, None], 2 * G + 2, axis=1)].reshape(-1, F)[-1] != 0).all()


def test_many_alerts_are_scored_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    given, score, inputs = (
        Attribution(GROUPS, random_reference(random)),
        random_net(random, 1.0),
        random_inputs(random, 11),
    )
    whole = given.contributions(score, inputs)
    monkeypatch.setattr(attribution, "MOST_ROWS", 30)
    np.testing.assert_allclose(given.contributions(score, inputs), whole)
    nothing = ModelInputs(inputs.steps[:0], inputs.lengths[:0], inputs.aggregates[:0])
    assert given.contributions(score, nothing).shape == (0, G)


def test_missing_values_travel_as_nan() -> None:
    random = np.random.default_rng(3)
    inputs = random_inputs(random, 2)
    inputs.aggregates[0, :3] = np.nan
    reference = Reference.of(STEP, AGGREGATES, dict.fromkeys((c.name for c in STEP), 0.0), dict.fromkeys(
        (c.name for c in AGGREGATES), None))  # fmt: skip
    assert np.isnan(reference.aggregates).all()

    def score(steps: NDArray[Any], lengths: NDArray[Any], aggregates: NDArray[Any]) -> NDArray[Any]:
        return np.asarray((~np.isnan(aggregates)).sum(axis=1).astype(float))

    found = Attribution(GROUPS, reference).contributions(score, inputs)
    np.testing.assert_allclose(found, [[0, 3, 3, 3, 3, 3], [3] * 6])
    with pytest.raises(ConfigError, match="none for the column 'amount_0'"):
        Reference.of(STEP, AGGREGATES, dict.fromkeys((c.name for c in STEP), 0.0), {})


WORDS = (
    ReasonTemplate(
        "BURST", "velocity", "{count:.0f} payments in 10 min, usually {usual:.1f} per day", (("count", 3, math.inf),)
    ),
    ReasonTemplate("PACE", "velocity", "{count:.0f} payments in 10 min"),
    ReasonTemplate("AMOUNT", "amount", "amount {amount:,.2f}"),
)
SPOKEN = (
    Column("count", "velocity"), Column("usual", "velocity"), Column("amount", "amount"), Column("spent", "amount"),
    Column("distance", "place"), Column("country", "place", 100), Column("speed", "place"), Column("hour", "time"),
)  # fmt: skip
USUAL = {
    "count": 1.0,
    "usual": 1.0,
    "amount": 20.0,
    "spent": 50.0,
    "distance": 3.0,
    "country": 7.0,
    "speed": None,
    "hour": 0.2,
}
ORDER = ("amount", "velocity", "place", "time", "channel")


def explain(contributions: list[float], **values: float) -> list[tuple[str, str, dict[str, float]]]:
    row = [values.get(column.name, math.nan) for column in SPOKEN]
    explainer = Explainer(ORDER, SPOKEN, WORDS, USUAL)
    (reasons,) = explainer.explain(np.array([contributions]), np.array([row], dtype=np.float32))
    return [(reason.code, reason.text, reason.values) for reason in reasons]


def test_the_greatest_contributions_come_first_in_words() -> None:
    found = explain([0.5, 2.0, 0.1, -3.0, 0.05], count=9, usual=1.04, amount=1234.5, distance=800.0)
    assert found == [
        ("BURST", "9 payments in 10 min, usually 1.0 per day", {"count": 9.0, "usual": 1.04}),
        ("AMOUNT", "amount 1,234.50", {"amount": 1234.5}),
        ("PLACE", "unusual place: distance 800 (usually 3)", {"distance": 800.0}),
    ]


def test_templates_need_their_values_and_bounds() -> None:
    assert explain([0, 1, 0, 0, 0], count=2, usual=1)[0][:2] == ("PACE", "2 payments in 10 min")
    assert explain([0, 1, 0, 0, 0], count=9)[0][0] == "PACE"
    assert explain([0, 1, 0, 0, 0], usual=0.1) == [
        ("VELOCITY", "unusual velocity: usual 0.1 (usually 1)", {"usual": 0.1})
    ]


def test_without_a_template_the_most_unusual_values_speak() -> None:
    ((code, text, values),) = explain([0, 0, 1, 0, 0], distance=3.2, country=5, speed=900.0)
    assert (code, text) == ("PLACE", "unusual place: speed 900, distance 3.2 (usually 3)")
    assert list(values) == ["speed", "distance"]
    assert explain([0, 0, 0, 0, 1]) == [("CHANNEL", "unusual channel", {})]


def test_what_did_not_raise_the_score_is_no_reason() -> None:
    assert explain([0, -1, 0, -2, 0], count=9) == []
    assert explain([math.nan, math.inf, -math.inf, 0.5, math.nan], hour=0.5)[0][0] == "TIME"
    assert len(explain([math.nan, math.inf, -math.inf, 0.5, math.nan], hour=0.5)) == 1
    explainer = Explainer(ORDER, SPOKEN, WORDS, USUAL)
    assert explainer.explain(np.empty((0, 5)), np.empty((0, len(SPOKEN)), dtype=np.float32)) == []


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (ReasonTemplate("X", "amount", "{typo:.0f}"), "'X': no aggregate column 'typo'"),
        (ReasonTemplate("X", "amount", "{amount}", (("typo", 0, 1),)), "'X': no aggregate column 'typo'"),
        (ReasonTemplate("X", "amount", "{amount:d}"), "'X': its text cannot be filled in"),
        (ReasonTemplate("X", "amount", "{amount"), "'X': its text cannot be filled in"),
        (ReasonTemplate("X", "amount", "{}"), "'X': its text cannot be filled in"),
    ],
)
def test_templates_are_checked_at_the_start(template: ReasonTemplate, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Explainer(ORDER, SPOKEN, (template,), USUAL)


def test_the_payments_templates_can_be_filled_in() -> None:
    groups = FeatureGroups.of(DOMAIN.step_columns, DOMAIN.aggregate_columns).names
    explainer = Explainer(groups, DOMAIN.aggregate_columns, DOMAIN.reasons, {}, most_reasons=len(groups))
    random = np.random.default_rng(5)
    shape = (50, len(DOMAIN.aggregate_columns))
    values = np.where(random.random(shape) < 0.5, np.nan, random.exponential(5, shape)).astype(np.float32)
    for reasons in explainer.explain(np.ones((50, len(groups))), values):
        assert [reason.group for reason in reasons] == list(groups)
        assert all(reason.text and "nan" not in reason.text for reason in reasons)
        assert all(math.isfinite(value) for reason in reasons for value in reason.values.values())
