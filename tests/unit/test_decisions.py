"""The decision policy: its file, the score scale, thresholds, rules and lists against a slow twin."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream.decisions.decider import NO_BAND, Decided, Decider
from stream.decisions.policy import DEFAULT_POLICY, Policy, load_policy
from stream.decisions.scale import NO_SCORE, ScoreScale, log_odds
from stream.errors import ConfigError
from stream.events.records import DECISIONS, Decision
from stream.features.spec import Column

COLUMNS = (Column("count_10min", "velocity"), Column("amount", "amount"), Column("channel", "channel", 31))
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "policy.yaml"
APPROVE, REVIEW, DECLINE = range(3)


def policy(**fields: Any) -> Policy:
    return Policy.model_validate({"version": "t"} | fields)


def decide(
    given: Policy,
    probability: list[float],
    events: list[dict[str, Any]] | None = None,
    values: list[list[float]] | None = None,
) -> Decided:
    count = len(probability)
    decider = Decider(given, COLUMNS, review=0.2, decline=0.7)
    aggregates = np.array(values or [[0.0, 0.0, 0.0]] * count, dtype=np.float32)
    return decider.decide(np.array(probability), events or [{}] * count, aggregates)


def written(folder: Path, text: str) -> Path:
    path = folder / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("review", "decline"),
    [(0.01, 0.5), (0.2, 0.2), (0.9999, 0.99999), (1e-7, 2e-7), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0)],
)
def test_the_scale_is_monotone_and_tells_the_decision(review: float, decline: float) -> None:
    scale = ScoreScale(review, decline, 600, 850)
    near = [math.nextafter(t, side) for t in (review, decline) for side in (0.0, 1.0)]
    probability = np.sort(
        np.concatenate([np.linspace(0, 1, 20_001), np.logspace(-9, 0, 2_000), [review, decline, *near]])
    )
    scores = scale.scores(probability)
    assert (np.diff(scores) >= 0).all()
    assert scores.min() >= 0
    assert scores.max() <= 999
    assert ((scores >= 850) == (probability >= decline)).all()
    assert ((scores >= 600) == (probability >= review)).all()


def test_points_of_the_scale() -> None:
    scale = ScoreScale(0.01, 0.5, 600, 850)
    assert scale.scores(np.array([0.0, 1e-6, 0.01, 0.5, 1.0, np.nan])).tolist() == [0, 0, 600, 850, 999, NO_SCORE]
    # 250 points for the 6.63 doublings of the odds between 1:99 and 1:1.
    doubled = 2 / 99 / (1 + 2 / 99)
    assert scale.scores(np.array([doubled])).tolist() == [600 + math.floor(250 / math.log2(99))]


def test_log_odds_are_held_within_bounds() -> None:
    found = log_odds(np.array([0.0, 1e-12, 0.5, 0.731058578630005, 1.0, np.nan]))
    assert found[[2, 3]] == pytest.approx([0.0, 1.0])
    assert found[[0, 1, 4]] == pytest.approx([-13.815509557963774, -13.815509557963774, 13.815509557963774])
    assert np.isnan(found[5])


def test_thresholds_are_inclusive_and_the_policy_overrides_the_bundle() -> None:
    probability = [0.0, 0.1999, 0.2, 0.6999, 0.7, 1.0]
    assert decide(DEFAULT_POLICY, probability).decision.tolist() == [0, 0, 1, 1, 2, 2]
    own = policy(thresholds={"review": 0.1, "decline": 0.15})
    assert decide(own, probability).decision.tolist() == [0, 2, 2, 2, 2, 2]


def test_bands_follow_the_score() -> None:
    own = policy(bands=[{"name": "calm", "from_score": 0}, {"name": "hot", "from_score": 600}])
    decided = decide(own, [0.1999, 0.2, 1.0, math.nan])
    assert decided.band.tolist() == [0, 1, 1, NO_BAND]
    assert Decider(own, COLUMNS).band_names == ("calm", "hot")


def test_without_a_model_only_rules_and_lists_decide() -> None:
    own = policy(
        rules=[
            {"name": "r", "when": [{"column": "amount", "op": ">", "value": 10}], "decision": "review", "reason": "x"}
        ],
        lists=[
            {"name": "a", "kind": "allow", "field": "m", "values": ["good"], "reason": "x"},
            {"name": "b", "kind": "block", "field": "m", "values": ["bad"], "reason": "x"},
        ],
    )
    decider = Decider(own, COLUMNS)
    events: list[dict[str, Any]] = [{}, {}, {"m": "good"}, {"m": "bad"}]
    aggregates = np.array([[0, 5, 0], [0, 50, 0], [0, 50, 0], [0, 5, 0]], dtype=np.float32)
    for thresholds in ({}, {"review": 0.2, "decline": 0.7}):
        decider = Decider(own, COLUMNS, **thresholds)
        decided = decider.decide(np.full(4, np.nan), events, aggregates)
        assert decided.decision.tolist() == [APPROVE, REVIEW, APPROVE, DECLINE]
        assert decided.score.tolist() == [NO_SCORE] * 4
        assert decided.band.tolist() == [NO_BAND] * 4


def test_lists_win_over_rules_and_thresholds_and_block_over_allow() -> None:
    own = policy(
        allow_below_score=950,
        lists=[
            {"name": "vip", "kind": "allow", "field": "account_id", "values": ["a", "both"], "reason": "known"},
            {"name": "stolen", "kind": "block", "field": "device_id", "values": ["d"], "reason": "stolen"},
        ],
        rules=[{"name": "all", "when": [{"field": "n", "op": ">=", "value": 1}], "decision": "decline", "reason": "n"}],
    )
    events = [
        {"account_id": "a", "n": 1},
        {"account_id": "a", "device_id": "d"},
        {"account_id": "A"},
        {"account_id": "a"},
        {"account_id": None, "device_id": ["d"]},
    ]
    decided = decide(own, [0.5, 0.01, 0.5, 0.999999, 0.1], events)
    assert decided.decision.tolist() == [APPROVE, DECLINE, REVIEW, DECLINE, APPROVE]
    names = {place: [hit.name for hit in hits] for place, hits in decided.hits.items()}
    assert names == {0: ["all", "allow:vip"], 1: ["allow:vip", "block:stolen"]}
    assert decided.hits[0][0].decision is Decision.DECLINE
    always = own.model_copy(update={"allow_below_score": 1000})
    assert decide(always, [0.999999], [{"account_id": "a"}]).decision.tolist() == [APPROVE]


CONDITIONS: list[tuple[dict[str, Any], Any, bool]] = [
    ({"op": ">", "value": 5}, 5, False),
    ({"op": ">=", "value": 5}, 5, True),
    ({"op": "<", "value": 5}, 4.5, True),
    ({"op": "<=", "value": 5}, 5.1, False),
    ({"op": "==", "value": 5}, 5.0, True),
    ({"op": "==", "value": "5"}, 5, False),
    ({"op": "==", "value": "pos"}, "pos", True),
    ({"op": "==", "value": "pos"}, "POS", False),
    ({"op": "==", "value": True}, True, True),
    ({"op": "==", "value": True}, 1, False),
    ({"op": "==", "value": 1}, True, False),
    ({"op": "in", "value": ["a", "b"]}, "b", True),
    ({"op": "in", "value": [1, 2]}, 2, True),
    ({"op": "in", "value": [1, 2]}, True, False),
    ({"op": "in", "value": ["a"]}, ["a"], False),
    ({"op": ">", "value": 5}, "9", False),
    ({"op": ">", "value": 0}, True, False),
    ({"op": "<", "value": 5}, None, False),
    ({"op": "<", "value": 5}, {"x": 1}, False),
    ({"op": "==", "value": "x"}, None, False),
]


@pytest.mark.parametrize(("condition", "value", "met"), CONDITIONS)
def test_conditions_on_fields(condition: dict[str, Any], value: Any, met: bool) -> None:
    rule = {"name": "r", "when": [{"field": "f"} | condition], "decision": "review", "reason": "x"}
    decided = decide(policy(rules=[rule]), [0.0, 0.0], [{"f": value}, {}])
    assert decided.decision.tolist() == [REVIEW if met else APPROVE, APPROVE]


def test_missing_columns_meet_no_condition() -> None:
    for op in (">", ">=", "<", "<=", "==", "in"):
        value: Any = [0, 1] if op == "in" else 0
        condition = {"column": "amount", "op": op, "value": value}
        rule = {"name": "r", "when": [condition], "decision": "decline", "reason": "x"}
        assert decide(policy(rules=[rule]), [0.0], values=[[0, math.nan, 0]]).decision.tolist() == [APPROVE]


def test_columns_compare_as_float32() -> None:
    rule = {
        "name": "r",
        "when": [{"column": "amount", "op": "in", "value": [0.1, 7]}],
        "decision": "review",
        "reason": "x",
    }
    assert decide(policy(rules=[rule]), [0.0] * 3, values=[[0, 0.1, 0], [0, 7, 0], [0, 0.2, 0]]).decision.tolist() == [
        1,
        1,
        0,
    ]


@pytest.mark.parametrize("seed", range(5))
def test_a_batch_is_decided_as_one_by_one_would_be(seed: int) -> None:
    """The twin reads the policy as its documentation does, event by event."""
    random = np.random.default_rng(seed)
    large = [{"column": "amount", "op": ">", "value": 60}, {"field": "c", "op": "in", "value": ["x", "y"]}]
    quick = [{"field": "n", "op": "<=", "value": 3}, {"column": "count_10min", "op": ">=", "value": 50}]
    rules = [
        {"name": "r1", "when": large, "decision": "review", "reason": "x"},
        {"name": "r2", "when": quick, "decision": "decline", "reason": "x"},
    ]
    lists = [
        {"name": "l1", "kind": "block", "field": "m", "values": ["m1", "m2"], "reason": "x"},
        {"name": "l2", "kind": "allow", "field": "a", "values": ["a1", "a2", "a3"], "reason": "x"},
    ]
    own = policy(rules=rules, lists=lists, allow_below_score=900)
    count = 400
    probability = np.where(random.random(count) < 0.1, np.nan, random.beta(0.5, 0.8, count))
    values = np.where(random.random((count, 3)) < 0.2, np.nan, random.uniform(0, 100, (count, 3))).astype(np.float32)
    pick = random.integers(0, 9, (count, 4))
    events = [{"c": "xyz..."[c % 6], "n": int(n), "m": f"m{m}", "a": f"a{a}"} for c, n, m, a in pick]

    decider = Decider(own, COLUMNS, review=0.2, decline=0.7)
    decided = decider.decide(probability, events, values)
    for place, (event, row) in enumerate(zip(events, values, strict=True)):
        one = probability[place]
        expected, names = (DECLINE if one >= 0.7 else REVIEW if one >= 0.2 else APPROVE), []
        if row[1] > 60 and event["c"] in ("x", "y"):
            expected, names = max(expected, REVIEW), [*names, "r1"]
        if event["n"] <= 3 and row[0] >= 50:
            expected, names = max(expected, DECLINE), [*names, "r2"]
        if event["a"] in ("a1", "a2", "a3") and not decided.score[place] >= 900:
            expected, names = APPROVE, [*names, "allow:l2"]
        if event["m"] in ("m1", "m2"):
            expected, names = DECLINE, [*names, "block:l1"]
        assert decided.decision[place] == expected
        assert [hit.name for hit in decided.hits.get(place, ())] == names
    assert set(decided.decision.tolist()) == {0, 1, 2}


def test_an_empty_batch() -> None:
    decided = decide(load_policy(EXAMPLE), [], [], [])
    assert decided.decision.shape == decided.score.shape == decided.band.shape == (0,)


def test_the_example_is_valid_and_does_what_it_says() -> None:
    example = load_policy(EXAMPLE)
    events = [
        {"device_id": "device-reported-stolen-1"},
        {"merchant_id": "merchant-own-payouts"},
        {"entry_mode": "keyed"},
        {},
    ]
    decided = decide(example, [0.0, 0.5, 0.0, 0.0], events, [[0, 0, 0], [0, 0, 0], [0, 5000, 0], [8, 0, 0]])
    assert [DECISIONS[code] for code in decided.decision] == ["decline", "approve", "decline", "review"]


def test_lists_come_from_files_too(tmp_path: Path) -> None:
    (tmp_path / "stolen.txt").write_text("# comment\nd-2\n\n  d-3  \n", encoding="utf-8")
    text = (
        "version: 2026-11-01\nlists: [{name: s, kind: block, field: d, values: [d-1], file: stolen.txt, reason: x}]\n"
    )
    loaded = load_policy(written(tmp_path, text))
    assert loaded.version == "2026-11-01"
    assert loaded.lists[0].values == {"d-1", "d-2", "d-3"}
    assert "d-1" not in repr(loaded)


RULE = "version: 1\nrules: [{name: r, when: [%s], decision: review, reason: x}]"
BROKEN = [
    ("version: [", "not YAML at line 1"),
    ("- a\n- b", "must hold fields"),
    ("thresholds: {review: 0.1, decline: 0.2}", "version: Field required"),
    ("version: 1\nthresholds: {review: 0.5, decline: 0.2}", "thresholds: decline must not be below review"),
    ("version: 1\nthresholds: {review: 0.5, decline: 1.2}", "thresholds.decline: .*less than or equal to 1"),
    ("version: 1\nscale: {review: 900, decline: 850}", "scale: decline must be above review"),
    ("version: 1\nbands: [{name: a, from_score: 5}]", "bands: the first must begin at 0"),
    ("version: 1\nbands: [{name: a, from_score: 0}, {name: a, from_score: 9}]", "bands: the name 'a' is used twice"),
    ("version: 1\nrulez: []", "rulez: Extra inputs are not permitted"),
    (RULE % "", "rules.0.when: .*at least 1 item"),
    (RULE % "{field: a, op: '~', value: 1}", "'>', '>='"),
    (RULE % "{field: a, op: '>', value: x}", "must be a number"),
    (RULE % "{op: '>', value: 1}", "either field or column"),
    (RULE % "{field: a, op: in, value: 1}", "must be a list"),
    (RULE % "{column: a, op: '==', value: x}", "holds numbers"),
    (RULE.replace("review", "approve") % "{field: a, op: '>', value: 1}", "'review' or 'decline'"),
    ("version: 1\nlists: [{name: l, kind: block, field: a, file: none.txt, reason: x}]", "none.txt cannot be read"),
    ("version: 1\nlists: [{name: l, kind: grey, field: a, reason: x}]", "lists.0.kind: .*'block' or 'allow'"),
]


@pytest.mark.parametrize(("text", "words"), BROKEN)
def test_a_wrong_policy_says_what_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_policy(written(tmp_path, text))


def test_errors_never_repeat_listed_values(tmp_path: Path) -> None:
    text = "version: 1\nlists: [{name: l, kind: block, field: account_id, values: [4111111111111111], reason: x}]"
    with pytest.raises(ConfigError, match=r"lists\.0\.values\.0") as caught:
        load_policy(written(tmp_path, text))
    assert "4111" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_policy(tmp_path / "absent.yaml")


def test_a_rule_on_an_unknown_column_is_refused() -> None:
    rule = {"name": "r", "when": [{"column": "count_5min", "op": ">", "value": 1}], "decision": "review", "reason": "x"}
    with pytest.raises(ConfigError, match=r"'r': no column 'count_5min'; there are: amount, channel, count_10min"):
        Decider(policy(rules=[rule]), COLUMNS)
