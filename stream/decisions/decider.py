"""Decisions for a batch: thresholds, then rules, then lists, each a vectorised step."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.decisions.policy import Condition, Policy, Rule, Thresholds, ValueList
from stream.decisions.scale import NO_SCORE, ScoreScale
from stream.errors import ConfigError
from stream.events.records import DECISIONS, Decision, RuleHit
from stream.features.spec import Column

Events = Sequence[Mapping[str, Any]]
Positions = NDArray[np.intp]

NO_BAND = 255
"""In place of a band's index where there is no score."""

_APPROVE, _REVIEW, _DECLINE = (DECISIONS.index(d) for d in (Decision.APPROVE, Decision.REVIEW, Decision.DECLINE))
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
}


@dataclass(slots=True)
class Decided:
    """Decisions of a batch of B events. Arrays are (B,)."""

    decision: NDArray[np.uint8]
    """Places in DECISIONS."""
    score: NDArray[np.int16]
    """0 to 999; NO_SCORE without a probability."""
    band: NDArray[np.uint8]
    """Places in the policy's bands; NO_BAND without a score."""
    hits: dict[int, tuple[RuleHit, ...]]
    """By place in the batch, only where a list or a rule applied: rules first, then lists."""


class Decider:
    """A policy made ready for one model's thresholds and one domain's columns. Holds no other state."""

    def __init__(
        self, policy: Policy, columns: Sequence[Column], *, review: float | None = None, decline: float | None = None
    ) -> None:
        """`review` and `decline`: the bundle's thresholds, used where the policy has none; None without a bundle.

        ConfigError when a rule names a column that the domain does not have.
        """
        self.policy = policy
        self.band_names = tuple(band.name for band in policy.bands)
        self._bounds = np.array([band.from_score for band in policy.bands], dtype=np.int16)
        self._thresholds = policy.thresholds
        if self._thresholds is None and review is not None and decline is not None:
            self._thresholds = Thresholds(review=review, decline=decline)
        self._scale = self._make_scale()
        self._columns = {column.name: place for place, column in enumerate(columns)}
        self._check_columns()
        self._rules = [(rule.when, DECISIONS.index(Decision(rule.decision)), _rule_hit(rule)) for rule in policy.rules]
        self._allow = [(values, _list_hit(values)) for values in policy.lists if values.kind == "allow"]
        self._block = [(values, _list_hit(values)) for values in policy.lists if values.kind == "block"]

    def decide(
        self, probability: NDArray[np.floating[Any]], events: Events, aggregates: NDArray[np.float32]
    ) -> Decided:
        """Decides B events; `probability` (B,) is NaN without a model, `aggregates` is (B, D).

        In this order, later wins: the thresholds; rules, which only raise; allow lists, which approve below
        `allow_below_score` (or without a score); block lists, which decline. Pure.
        """
        exact = np.asarray(probability, dtype=np.float64)
        decision, score = self._by_thresholds(exact)
        hits: dict[int, tuple[RuleHit, ...]] = {}
        for conditions, code, hit in self._rules:
            places = self._matching(conditions, events, aggregates)
            decision[places] = np.maximum(decision[places], code)
            _add_hits(hits, places, hit)
        for values, hit in self._allow:
            places = _listed(values, events)
            places = places[score[places] < self.policy.allow_below_score]
            decision[places] = _APPROVE
            _add_hits(hits, places, hit)
        for values, hit in self._block:
            places = _listed(values, events)
            decision[places] = _DECLINE
            _add_hits(hits, places, hit)
        band = np.searchsorted(self._bounds, score, side="right") - 1
        return Decided(decision, score, np.where(score == NO_SCORE, NO_BAND, band).astype(np.uint8), hits)

    def _make_scale(self) -> ScoreScale | None:
        thresholds, scale = self._thresholds, self.policy.scale
        if thresholds is None:
            return None
        return ScoreScale(thresholds.review, thresholds.decline, scale.review, scale.decline)

    def _by_thresholds(self, probability: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
        thresholds, scale = self._thresholds, self._scale
        if thresholds is None or scale is None:
            count = len(probability)
            return np.full(count, _APPROVE, dtype=np.uint8), np.full(count, NO_SCORE, dtype=np.int16)
        reviewed = (probability >= thresholds.review).astype(np.uint8)
        decision = reviewed * np.uint8(_REVIEW)
        decision[probability >= thresholds.decline] = _DECLINE
        return decision, scale.scores(probability)

    def _matching(self, conditions: Sequence[Condition], events: Events, aggregates: NDArray[np.float32]) -> Positions:
        """Places of the events that meet all conditions; each looks only at what the former left."""
        places = np.arange(len(events))
        for condition in conditions:
            if not len(places):
                break
            if condition.column is not None:
                met = _compare_numbers(condition, aggregates[places, self._columns[condition.column]])
            else:
                name = condition.field or ""
                met = _compare_values(condition, [events[place].get(name) for place in places.tolist()])
            places = places[met]
        return places

    def _check_columns(self) -> None:
        for rule in self.policy.rules:
            for condition in rule.when:
                if condition.column is not None and condition.column not in self._columns:
                    known = ", ".join(sorted(self._columns))
                    raise ConfigError(f"policy: rule {rule.name!r}: no column {condition.column!r}; there are: {known}")


def _compare_numbers(condition: Condition, values: NDArray[Any]) -> NDArray[np.bool_]:
    """NaN, which stands for missing, meets no condition."""
    if condition.op == "in":
        return np.isin(values, np.array(condition.value, dtype=values.dtype))
    return np.asarray(_COMPARE[condition.op](values, condition.value), dtype=np.bool_)


def _compare_values(condition: Condition, values: list[Any]) -> NDArray[np.bool_]:
    wanted = condition.value
    if condition.op == "in" and isinstance(wanted, tuple):
        return np.array([any(_same(value, one) for one in wanted) for value in values], dtype=np.bool_)
    if condition.op == "==":
        return np.array([_same(value, wanted) for value in values], dtype=np.bool_)
    numbers = [value if value.__class__ in (float, int) else np.nan for value in values]
    return _compare_numbers(condition, np.array(numbers, dtype=np.float64))


def _same(value: Any, wanted: Any) -> bool:
    """Equal and of one kind: in Python True == 1, in a policy not."""
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)


def _listed(values: ValueList, events: Events) -> Positions:
    wanted, name = values.values, values.field
    found = [place for place, event in enumerate(events) if _text(event.get(name)) in wanted]
    return np.array(found, dtype=np.intp)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _rule_hit(rule: Rule) -> RuleHit:
    return RuleHit(name=rule.name, decision=Decision(rule.decision), reason=rule.reason)


def _list_hit(values: ValueList) -> RuleHit:
    decision = Decision.DECLINE if values.kind == "block" else Decision.APPROVE
    return RuleHit(name=f"{values.kind}:{values.name}", decision=decision, reason=values.reason)


def _add_hits(hits: dict[int, tuple[RuleHit, ...]], places: Positions, hit: RuleHit) -> None:
    for place in places.tolist():
        hits[place] = (*hits.get(place, ()), hit)
