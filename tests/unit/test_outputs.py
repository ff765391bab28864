"""The records that are published: of the shape that their models promise, and true."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from stream.config import BatchSettings, RecordSettings
from stream.decisions.policy import DEFAULT_POLICY, Condition, Policy, Rule, ValueList
from stream.engine.outputs import Judge, Judged, Situation
from stream.engine.pipeline import Pipeline, Scored
from stream.engine.pressure import Shed
from stream.events.records import Alert, Flag, RiskScore, encode
from stream.features.assemble import FeatureState
from stream.features.columns import hash_ids
from stream.features.money import Rates
from stream.kafka.memory import MemoryRecord
from stream.metrics import Metrics
from stream.scoring.lineup import CHALLENGERS, CHAMPION, Change, Lineup
from stream.scoring.scorer import Scorer
from tests.crash.small import DOMAIN, FormulaScorer
from tests.crash.traffic import START_MS, Item, Traffic

FORMULA = FormulaScorer()


class Bench:
    """Scores items and judges them."""

    def __init__(
        self, scorer: Scorer | None = FORMULA, policy: Policy = DEFAULT_POLICY, records: RecordSettings | None = None
    ) -> None:
        self.state = FeatureState(DOMAIN, accounts=256, entities=256, use_others=True)
        rates = Rates.base_only("USD")
        self.lineup = Lineup(scorer)
        self.pipeline = Pipeline(DOMAIN, rates, BatchSettings(), self.state, self.lineup, Metrics(CollectorRegistry()))
        self.judge = Judge(DOMAIN, policy, records or RecordSettings(), rates_version=rates.version)
        self.offset = 0

    def score(self, items: Sequence[Item]) -> Scored:
        records = [
            MemoryRecord(item.topic, 0, self.offset + i, START_MS, item.key, item.value, ())
            for i, item in enumerate(items)
        ]
        self.offset += len(items)
        batch = self.pipeline.decode_events(records).batch
        self.state.next_turn()
        self.state.admit_new(batch)
        return self.pipeline.score(batch, self.pipeline.fold_events(batch))

    def records(
        self, items: Sequence[Item], *, cold: bool = False, degraded: bool = False, explain: bool = True
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Judged]:
        """Score records and alerts, as a reader gets them, and what they were made of."""
        scored = self.score(items)
        size = len(scored.batch)
        situation = Situation(
            origins=[{"topic": "transactions", "partition": 0, "offset": int(o)} for o in scored.batch.offset],
            labels_offset=[7] * size,
            cold=np.full(size, cold),
            degraded=np.full(size, degraded),
            now_ms=START_MS,
        )
        judged = self.judge.judge(scored, situation)
        scores = self.judge.score_records(judged, situation)
        alerts = self.judge.alert_records(judged, scores, explain=explain)
        return [json.loads(text) for text in encode(scores)], [json.loads(text) for text in encode(alerts)], judged


@pytest.fixture
def traffic() -> Traffic:
    return Traffic(2, 1)


@pytest.mark.parametrize("mode", ["none", "alerts", "sample", "all"])
def test_every_record_is_of_its_model(traffic: Traffic, mode: str) -> None:
    """And says nothing beside it: extra fields are ignored by the models, so they are looked for here."""
    settings = RecordSettings.model_validate({"features": mode, "sample_rate": 0.4})
    scores, alerts, _ = Bench(records=settings).records([traffic.event() for _ in range(150)])
    for score in scores:
        RiskScore.model_validate(score)
        assert set(score) <= set(RiskScore.model_fields)
    for alert in alerts:
        Alert.model_validate(alert)
        assert set(alert) <= set(Alert.model_fields)
    assert len(scores) == 150
    assert 0 < len(alerts) < 150


def test_a_score_repeats_its_event_and_says_how_it_came_about(traffic: Traffic) -> None:
    item = traffic.event(device_id="d7", currency="USD", note={"deep": [1, None]}, extra=True)
    event = json.loads(item.value or b"")
    (score,), _, judged = Bench().records([item])
    for name in ("event_id", "account_id", "timestamp", "amount", "currency", "merchant_id", "device_id"):
        assert score[name] == event[name]
    assert score["passthrough"] == {"note": {"deep": [1, None]}, "extra": True}
    assert score["origin"] == {"topic": "transactions", "partition": 0, "offset": 0}
    assert score["probability"] == pytest.approx(float(judged.probability[0]), abs=1e-9)
    assert score["model"] == "formula@1"
    assert score["policy_version"] == "default"
    assert score["spec_id"] == DOMAIN.spec_id
    assert score["rates_version"] == "base-only"
    assert score["labels_offset"] == 7
    assert score["entity_view_age_ms"] is None
    assert score["scored_at"] == "2023-11-14T22:13:20.000Z"
    assert set(score["components"]) == {"sequence", "aggregate"}
    assert score["flags"] == []


def test_the_declared_fields_that_outputs_do_not_carry_stay_out(traffic: Traffic) -> None:
    (score,), _, _ = Bench().records([traffic.event(card_id="c1", entry_mode="chip", attributes={"a": 1})])
    assert not {"card_id", "entry_mode", "attributes", "mcc", "channel"} & set(score)
    assert not {"card_id", "entry_mode", "attributes"} & set(score["passthrough"])


# --- flags


def flags_of(bench: Bench, items: Sequence[Item], **situation: bool) -> list[list[str]]:
    return [score["flags"] for score in bench.records(items, **situation)[0]]


def test_without_reservation_no_flag(traffic: Traffic) -> None:
    assert flags_of(Bench(), [traffic.event(currency="USD", timestamp="2023-09-01T00:00:00Z")]) == [[]]


def test_each_flag_has_its_cause(traffic: Traffic) -> None:
    plain = {"currency": "USD", "timestamp": "2023-09-01T00:00:00Z"}
    assert flags_of(Bench(), [traffic.event(**plain)], cold=True) == [[Flag.COLD]]
    assert flags_of(Bench(), [traffic.event(**plain)], degraded=True) == [[Flag.DEGRADED]]
    assert flags_of(Bench(), [traffic.event(**plain | {"currency": "XAF"})]) == [[Flag.NO_RATE]]
    assert flags_of(Bench(scorer=None), [traffic.event(**plain)]) == [[Flag.RULES_ONLY]]
    late = [traffic.event("a", **plain), traffic.event("a", **plain | {"timestamp": "2023-08-31T23:59:59.999Z"})]
    assert flags_of(Bench(), late) == [[], [Flag.LATE]]
    many = flags_of(Bench(), [traffic.event("a", **plain) for _ in range(66)])
    assert many == [[]] * 65 + [[Flag.SATURATED]], "the 66th is the first whose window holds one that left the ring"


def test_several_flags_come_in_the_order_of_their_declaration(traffic: Traffic) -> None:
    (flags,) = flags_of(Bench(scorer=None), [traffic.event(currency="XAF")], cold=True, degraded=True)
    assert flags == [flag for flag in Flag if flag in {Flag.NO_RATE, Flag.COLD, Flag.DEGRADED, Flag.RULES_ONLY}]


# --- without a model


def test_rules_alone_decide_where_there_is_no_model(traffic: Traffic) -> None:
    rule = Rule(
        name="large", decision="review", reason="a large amount",
        when=(Condition(field="amount", op=">", value=100.0),),
    )  # fmt: skip
    bench = Bench(scorer=None, policy=Policy(version="7", rules=(rule,)))
    scores, alerts, _ = bench.records([traffic.event(amount=50.0), traffic.event(amount=500.0)])
    assert [(s["probability"], s["score"], s["band"], s["model"]) for s in scores] == [(None,) * 4] * 2
    assert [s["decision"] for s in scores] == ["approve", "review"]
    assert [s["components"] for s in scores] == [{}, {}]
    (alert,) = alerts
    assert alert["reasons"] == []
    assert alert["rules"] == [{"name": "large", "decision": "review", "reason": "a large amount"}]
    assert scores[0]["policy_version"] == "7"
    for score in scores:
        RiskScore.model_validate(score)


def test_lists_decide_over_the_model(traffic: Traffic) -> None:
    blocked = ValueList(name="stolen", kind="block", field="device_id", values=frozenset({"d9"}), reason="stolen")
    bench = Bench(policy=Policy(version="8", lists=(blocked,)))
    scores, alerts, _ = bench.records([traffic.event(device_id="d9")])
    assert scores[0]["decision"] == alerts[0]["decision"] == "decline"
    assert scores[0]["rules"][0]["name"] == "block:stolen"


def test_the_model_of_the_moment_is_named_and_its_thresholds_count(traffic: Traffic) -> None:
    """After a fall-back, too: each model has its own decider."""
    strict = FormulaScorer("strict")
    strict.manifest = strict.manifest.model_copy(
        update={"thresholds": strict.manifest.thresholds.model_copy(update={"review": 0.0, "decline": 1.0})}
    )
    bench = Bench(scorer=FORMULA)
    bench.lineup.apply(Change(CHAMPION, strict))
    scores, alerts, _ = bench.records([traffic.event() for _ in range(10)])
    assert {s["model"] for s in scores} == {"strict@1"}
    assert {s["decision"] for s in scores} == {"review"}
    bench.lineup.drop(strict)
    scores, alerts, _ = bench.records([traffic.event() for _ in range(40)])
    assert {s["model"] for s in scores} == {"formula@1"}
    assert len(alerts) < 40


# --- challengers


def test_challengers_are_judged_by_their_own_thresholds_and_change_nothing(traffic: Traffic) -> None:
    strict = FormulaScorer("strict")
    strict.manifest = strict.manifest.model_copy(
        update={"thresholds": strict.manifest.thresholds.model_copy(update={"review": 0.0, "decline": 1.0})}
    )
    items = [traffic.event() for _ in range(50)]
    alone, alone_alerts, _ = Bench().records(items)
    bench = Bench()
    bench.lineup.apply(Change(CHALLENGERS[1], strict))
    bench.lineup.apply(Change(CHALLENGERS[0], FormulaScorer("equal")))
    scores, alerts, _ = bench.records(items)
    assert [{k: v for k, v in score.items() if k != "shadow"} for score in scores] == alone
    assert alerts == alone_alerts
    for score in scores:
        RiskScore.model_validate(score)
        equal, other = score["shadow"]
        assert (equal["role"], equal["model"], other["role"], other["model"]) == (
            "challenger-1", "equal@1", "challenger-2", "strict@1",
        )  # fmt: skip
        assert (equal["probability"], equal["score"], equal["decision"]) == (
            pytest.approx(score["probability"]), score["score"], score["decision"],
        )  # fmt: skip
        assert other["decision"] == "review"


def test_a_challenger_that_fails_leaves_alone(traffic: Traffic) -> None:
    bench = Bench()
    bench.lineup.apply(Change(CHALLENGERS[0], FormulaScorer("weak", fails_after=1)))
    assert bench.records([traffic.event()])[0][0]["shadow"]
    scores, _, _ = bench.records([traffic.event()])
    assert "shadow" not in scores[0]
    assert scores[0]["model"] == "formula@1"
    assert not bench.lineup.challengers


def test_challengers_can_be_left_out(traffic: Traffic) -> None:
    bench = Bench()
    rival = FormulaScorer("rival")
    bench.lineup.apply(Change(CHALLENGERS[0], rival))
    scored = bench.score([traffic.event()])
    assert rival.calls == 1
    again = bench.pipeline.score(scored.batch, scored.assembled, shed=Shed.CHALLENGERS)
    assert (rival.calls, again.shadows) == (1, {})


# --- what the model saw


def with_features(
    mode: str, traffic: Traffic, rate: float = 0.01, events: int = 200
) -> tuple[list[Any], list[Any], Judged]:
    settings = RecordSettings.model_validate({"features": mode, "sample_rate": rate})
    return Bench(records=settings).records([traffic.event(f"a{i % 40}") for i in range(events)])


def test_all_features_are_recorded_as_the_model_saw_them(traffic: Traffic) -> None:
    scores, _, judged = with_features("all", traffic)
    columns = [column.name for column in DOMAIN.aggregate_columns]
    seen = judged.scored.assembled.aggregates
    for row, score in zip(seen.tolist(), scores, strict=True):
        assert list(score["features"]) == columns
        for value, recorded in zip(row, score["features"].values(), strict=True):
            assert (recorded is None) if math.isnan(value) else recorded == value
    assert np.isnan(seen).any(), "missing values become null"


def test_no_features_unless_asked_for(traffic: Traffic) -> None:
    scores, alerts, _ = with_features("none", traffic)
    assert all("features" not in record for record in scores + alerts)


def test_features_of_alerts_alone(traffic: Traffic) -> None:
    scores, alerts, _ = with_features("alerts", traffic)
    assert [s["event_id"] for s in scores if s.get("features")] == [a["event_id"] for a in alerts]
    assert all("features" not in alert for alert in alerts), "the score record has them already"


def test_a_sample_is_chosen_by_the_event_id(traffic: Traffic) -> None:
    """So a replay chooses the same events, and so does a rescoring elsewhere."""
    scores, _, _ = with_features("sample", traffic, rate=0.25, events=400)
    chosen = {s["event_id"] for s in scores if s.get("features")}
    low = {s["event_id"] for s in scores if int(hash_ids([s["event_id"]])[0]) & 0xFFFFFFFF < 0.25 * 2**32}
    assert chosen == low
    assert 60 < len(chosen) < 140
    for rate, count in ((0.0, 0), (1.0, 400)):
        scores, _, _ = with_features("sample", Traffic(3, 1), rate=rate, events=400)
        assert sum("features" in s for s in scores) == count


# --- alerts


def test_every_alert_has_its_score_and_reasons(traffic: Traffic) -> None:
    scores, alerts, _ = Bench().records([traffic.event() for _ in range(200)])
    by_id = {score["event_id"]: score for score in scores}
    groups = {column.group for column in (*DOMAIN.step_columns, *DOMAIN.aggregate_columns)}
    assert len(alerts) > 10
    for alert in alerts:
        score = by_id[alert["event_id"]]
        assert score["decision"] != "approve"
        assert {name: alert[name] for name in alert if name != "reasons"}.items() <= score.items()
        assert 1 <= len(alert["reasons"]) <= 3
        contributions = [reason["contribution"] for reason in alert["reasons"]]
        assert contributions == sorted(contributions, reverse=True)
        assert contributions[-1] > 0
        assert {reason["group"] for reason in alert["reasons"]} <= groups
        assert all(reason["text"] for reason in alert["reasons"])


def test_reasons_may_be_shed(traffic: Traffic) -> None:
    _, alerts, _ = Bench().records([traffic.event() for _ in range(100)], explain=False)
    assert len(alerts) > 3
    assert all(alert["reasons"] == [] for alert in alerts)


def test_nothing_new_is_nothing_to_say(traffic: Traffic) -> None:
    bench = Bench()
    item = traffic.event()
    bench.records([item])
    scores, alerts, _ = bench.records([item, item])
    assert (scores, alerts) == ([], [])


# --- the other partitions' values


def test_the_age_of_the_other_partitions_values_is_told_where_they_took_part(traffic: Traffic) -> None:
    bench = Bench()
    first = traffic.event("a", merchant_id="shared", device_id=None)
    bench.records([first])
    rows = bench.state.entities["merchant"]
    (slot,) = rows.pool.find(0, ["shared"]).tolist()
    mine = rows.pack(np.array([slot]))[0]
    rows.set_others(np.array([slot]), [{1: mine}], START_MS - 1_234)
    items = [
        traffic.event("a", merchant_id="shared", device_id=None),
        traffic.event("b", merchant_id="own", device_id=None),
    ]
    scores, _, _ = bench.records(items)
    assert [score["entity_view_age_ms"] for score in scores] == [1_234, None]


def test_integers_beyond_64_bits_pass_through_as_they_are() -> None:
    record = {"passthrough": {"serial": 2**70}, "score": float("nan")}
    assert json.loads(encode([record])[0]) == {"passthrough": {"serial": 2**70}, "score": None}
    assert json.loads(encode([{"score": float("inf")}])[0]) == {"score": None}
