"""From scores to the records that are published: decisions, flags, reasons, and their JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.config import RecordSettings
from stream.decisions.attribution import Attribution, FeatureGroups, ModelInputs, Reference
from stream.decisions.decider import NO_BAND, Decided, Decider
from stream.decisions.policy import Policy
from stream.decisions.reasons import Explainer
from stream.decisions.scale import NO_SCORE
from stream.engine.pipeline import Scored
from stream.engine.pressure import Shed
from stream.events.moments import moment_text
from stream.events.records import DECISIONS, Decision, EventSplitter, Flag
from stream.features.batch import NO_AMOUNT
from stream.features.spec import Domain
from stream.scoring.scorer import Scorer

_FLAGS = tuple(Flag)
_APPROVE = DECISIONS.index(Decision.APPROVE)
_KEPT_MODELS = 8
"""Deciders at hand: a champion, the one before it, three challengers, and some that come and go."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What a batch's records say beside the scores, by position in the batch."""

    origins: list[dict[str, Any]]
    labels_offset: list[int]
    cold: NDArray[np.bool_]
    degraded: NDArray[np.bool_]
    now_ms: int
    shed: Shed = Shed.NOTHING
    has_challengers: bool = False


@dataclass(slots=True)
class Judged:
    """A batch decided, aligned with `scored.index` (A,). `flags` are bit sets over the places in Flag."""

    scored: Scored
    decided: Decided
    probability: NDArray[np.float64]
    flags: NDArray[np.int64]
    shadows: dict[str, ShadowJudged] = field(default_factory=dict)
    """What would have been decided, had the challenger been the champion; by role."""

    @property
    def suspicious(self) -> NDArray[np.int64]:
        """Positions (in A) of what is not approved."""
        return np.flatnonzero(self.decided.decision != _APPROVE)

    def flag_names(self) -> list[list[str]]:
        """The flags of each event by name: (A,). Events with the same flags share one list."""
        flags = self.flags.tolist()
        names = {bits: _names(bits) for bits in set(flags)}
        return [names[bits] for bits in flags]


@dataclass(frozen=True, slots=True)
class ShadowJudged:
    """A challenger's verdict on the same events (A,)."""

    model: str
    decided: Decided
    probability: NDArray[np.float64]


class ModelExplainer:
    """Reasons for the alerts of one model: its attribution, put into the domain's words."""

    def __init__(self, domain: Domain, scorer: Scorer) -> None:
        steps, aggregates, manifest = domain.step_columns, domain.aggregate_columns, scorer.manifest
        usual_step = {column.name: manifest.step_references.get(column.name) for column in steps}
        usual = {column.name: manifest.aggregate_references.get(column.name) for column in aggregates}
        groups = FeatureGroups.of(steps, aggregates)
        self._scorer = scorer
        self._attribution = Attribution(groups, Reference.of(steps, aggregates, usual_step, usual))
        self._words = Explainer(groups.names, aggregates, domain.reasons, usual)

    def reasons(self, inputs: ModelInputs) -> list[list[dict[str, Any]]]:
        """The top factors of A events, greatest first. ScoringFailed when the model fails at it."""
        contributions = self._attribution.contributions(lambda *parts: self._scorer.score(*parts).log_odds, inputs)
        explained = self._words.explain(contributions, inputs.aggregates)
        return [[reason.model_dump() for reason in reasons] for reasons in explained]


class Judge:
    """Decides, and writes the records. One per worker."""

    def __init__(self, domain: Domain, policy: Policy, records: RecordSettings, *, rates_version: str | None) -> None:
        self._domain, self._policy, self._records = domain, policy, records
        self._rates_version = rates_version
        identity = [domain.event_id_field, domain.account_field, domain.time_field, domain.amount_field]
        identity += [domain.currency_field, *(entity.field for entity in domain.entities)]
        self._splitter = EventSplitter(domain.event.model_fields, identity)
        self._deciders: dict[int, tuple[Scorer | None, Decider, ModelExplainer | None]] = {}
        self._columns = [column.name for column in domain.aggregate_columns]

    @property
    def bands(self) -> tuple[str, ...]:
        """The policy's names for ranges of scores, in the order of their codes."""
        return tuple(band.name for band in self._policy.bands)

    def judge(self, scored: Scored, situation: Situation) -> Judged:
        """Decisions and flags of the batch's new events."""
        index = scored.index
        decider = self._decider(scored.scorer)
        probability = (
            np.full(len(index), np.nan) if scored.scores is None else scored.scores.probability.astype(np.float64)
        )
        events = [scored.batch.events[i] for i in index.tolist()]
        decided = decider.decide(probability, events, scored.assembled.aggregates[index])
        flags = _flag_bits(
            {
                Flag.LATE: scored.assembled.late[index],
                Flag.SATURATED: scored.assembled.saturated[index],
                Flag.NO_RATE: scored.batch.amount_minor[index] == NO_AMOUNT,
                Flag.COLD: situation.cold[index],
                Flag.DEGRADED: situation.degraded[index],
                Flag.RULES_ONLY: np.isnan(probability),
                **_shed_flags(situation, decided.decision),
            }
        )
        return Judged(scored, decided, probability, flags, self._judge_shadows(scored, events))

    def _judge_shadows(self, scored: Scored, events: Sequence[Mapping[str, Any]]) -> dict[str, ShadowJudged]:
        shadows = {}
        for role, (scorer, scores) in scored.shadows.items():
            probability = scores.probability.astype(np.float64)
            aggregates = scored.assembled.aggregates[scored.index]
            decided = self._decider(scorer).decide(probability, events, aggregates)
            shadows[role] = ShadowJudged(scorer.manifest.label, decided, probability)
        return shadows

    def score_records(self, judged: Judged, situation: Situation) -> list[dict[str, Any]]:
        """One record per new event, of the shape of events.records.RiskScore."""
        scored, assembled, index = judged.scored, judged.scored.assembled, judged.scored.index
        shared = assembled.shared[index].tolist()
        ages = np.maximum(situation.now_ms - assembled.view_read_ms[index], 0).tolist()
        age_ms = [age if others else None for age, others in zip(ages, shared, strict=True)]
        components = [{}] * len(index) if scored.scores is None else _rows_of(scored.scores.components)
        labels_offset, places = situation.labels_offset, index.tolist()
        spec_id, rates_version = self._domain.spec_id, self._rates_version
        records = self._common(judged, situation)
        for record, position, age, parts in zip(records, places, age_ms, components, strict=True):
            record["labels_offset"] = labels_offset[position]
            record["entity_view_age_ms"] = age
            record["components"] = parts
            record["spec_id"] = spec_id
            record["rates_version"] = rates_version
        for place, values in self._features(judged).items():
            records[place]["features"] = values
        for record, shadow in zip(records, _shadow_rows(judged), strict=False):
            record["shadow"] = shadow
        return records

    def alert_records(self, judged: Judged, records: list[dict[str, Any]], *, explain: bool) -> list[dict[str, Any]]:
        """One alert per suspicious event, with the reasons; without them if `explain` is False (shed)."""
        places = judged.suspicious
        reasons: list[list[dict[str, Any]]] = [[] for _ in places]
        explainer = self._explainer(judged.scored.scorer) if explain and len(places) else None
        if explainer is not None:
            chosen = judged.scored.index[places]
            assembled = judged.scored.assembled
            inputs = ModelInputs(assembled.steps[chosen], assembled.lengths[chosen], assembled.aggregates[chosen])
            reasons = explainer.reasons(inputs)
        kept = ("labels_offset", "entity_view_age_ms", "components", "spec_id", "rates_version", "features", "shadow")
        alerts = []
        for place, why in zip(places.tolist(), reasons, strict=True):
            alert = {name: value for name, value in records[place].items() if name not in kept}
            alerts.append(alert | {"reasons": why})
        return alerts

    def _common(self, judged: Judged, situation: Situation) -> list[dict[str, Any]]:
        scored, decided = judged.scored, judged.decided
        decider = self._decider(scored.scorer)
        model = scored.scorer.manifest.label if scored.scorer is not None else None
        scored_at, policy_version = moment_text(situation.now_ms), self._policy.version
        events, origins, split = scored.batch.events, situation.origins, self._splitter.split
        bands = {**dict(enumerate(decider.band_names)), NO_BAND: None}
        hits = {place: [hit.model_dump() for hit in some] for place, some in decided.hits.items()}
        columns = (
            scored.index.tolist(),
            judged.probability.tolist(),
            decided.score.tolist(),
            decided.band.tolist(),
            decided.decision.tolist(),
            judged.flag_names(),
        )
        records: list[dict[str, Any]] = []
        for position, probability, score, band, decision, flags in zip(*columns, strict=True):
            record, passthrough = split(events[position])
            record["passthrough"] = passthrough
            record["origin"] = origins[position]
            record["probability"] = None if score == NO_SCORE else probability
            record["score"] = None if score == NO_SCORE else score
            record["band"] = bands[band]
            record["decision"] = DECISIONS[decision]
            record["rules"] = hits.get(len(records), [])
            record["model"] = model
            record["policy_version"] = policy_version
            record["flags"] = flags
            record["scored_at"] = scored_at
            records.append(record)
        return records

    def _features(self, judged: Judged) -> dict[int, dict[str, float]]:
        """Feature values by place, for the records that the settings choose; NaN becomes null when encoded."""
        mode, index = self._records.features, judged.scored.index
        if mode == "none":
            return {}
        if mode == "alerts":
            places = judged.suspicious.tolist()
        else:
            limit = 2**32 if mode == "all" else int(self._records.sample_rate * 2**32)
            places = [
                place
                for place, value in enumerate(judged.scored.batch.event_hash[index].tolist())
                if value & 0xFFFFFFFF < limit
            ]
        rows = judged.scored.assembled.aggregates[index]
        return {place: dict(zip(self._columns, rows[place].tolist(), strict=True)) for place in places}

    def _decider(self, scorer: Scorer | None) -> Decider:
        """The policy with a model's thresholds."""
        return self._for(scorer)[0]

    def _explainer(self, scorer: Scorer | None) -> ModelExplainer | None:
        return self._for(scorer)[1]

    def _for(self, scorer: Scorer | None) -> tuple[Decider, ModelExplainer | None]:
        """The decider and explainer that go with a model's thresholds and references."""
        kept = self._deciders.get(id(scorer))
        # The scorer is kept beside them: while it is, no other one can have its id.
        if kept is None or kept[0] is not scorer:
            columns = self._domain.aggregate_columns
            if scorer is None:
                made: tuple[Decider, ModelExplainer | None] = (Decider(self._policy, columns), None)
            else:
                thresholds = scorer.manifest.thresholds
                decider = Decider(self._policy, columns, review=thresholds.review, decline=thresholds.decline)
                made = (decider, ModelExplainer(self._domain, scorer))
            while len(self._deciders) >= _KEPT_MODELS:
                del self._deciders[next(iter(self._deciders))]
            kept = self._deciders[id(scorer)] = (scorer, *made)
        return kept[1], kept[2]


def _shed_flags(situation: Situation, decision: NDArray[np.uint8]) -> dict[Flag, NDArray[np.bool_]]:
    """What pressure has taken from the records of these events (A,): only what they would have had."""
    every = np.ones(len(decision), dtype=np.bool_)
    shed = situation.shed
    return {
        Flag.SHED_REASONS: (decision != _APPROVE) & (shed >= Shed.REASONS),
        Flag.SHED_CHALLENGERS: every & (situation.has_challengers and shed >= Shed.CHALLENGERS),
        Flag.SHED_MODEL: every & (shed >= Shed.MODEL),
    }


def _shadow_rows(judged: Judged) -> list[list[dict[str, Any]]]:
    """What each record says of the challengers, (A,); empty when there are none."""
    if not judged.shadows:
        return []
    columns = [
        [
            {
                "role": role,
                "model": shadow.model,
                "probability": probability,
                "score": score,
                "decision": DECISIONS[code],
            }
            for probability, score, code in zip(
                shadow.probability.tolist(),
                shadow.decided.score.tolist(),
                shadow.decided.decision.tolist(),
                strict=True,
            )
        ]
        for role, shadow in judged.shadows.items()
    ]
    return [list(row) for row in zip(*columns, strict=True)]


def _flag_bits(flags: Mapping[Flag, NDArray[np.bool_]]) -> NDArray[np.int64]:
    """One integer per event with the bit of each flag's place."""
    bits = [where.astype(np.int64) << _FLAGS.index(flag) for flag, where in flags.items()]
    total: NDArray[np.int64] = np.bitwise_or.reduce(bits)
    return total


def _names(bits: int) -> list[str]:
    return [flag for place, flag in enumerate(_FLAGS) if bits >> place & 1] if bits else []


def _rows_of(columns: Mapping[str, NDArray[np.float32]]) -> list[dict[str, float]]:
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]
