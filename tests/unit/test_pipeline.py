"""From records to scores, and one turn of it: what is decoded, cut, folded, and who scores when a model fails."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from stream.clock import ManualClock
from stream.config import BatchSettings, Settings, load_settings
from stream.decisions.policy import DEFAULT_POLICY
from stream.engine.flush import RowKeeper
from stream.engine.inputs import Share
from stream.engine.outputs import Judge
from stream.engine.partition import Partition, Phase
from stream.engine.pipeline import Pipeline
from stream.engine.turn import Turn, TurnResult
from stream.errors import ConfigError, ScoringFailed, UnavailableError
from stream.events.records import Alert, DeadLetter, RiskScore
from stream.features.assemble import FeatureState
from stream.features.money import Rates
from stream.kafka.memory import MemoryRecord
from stream.metrics import Metrics
from stream.scoring.lineup import CHALLENGERS, CHAMPION, Change, Lineup
from stream.scoring.scorer import Scorer
from stream.state.memory import MemoryStore
from stream.state.store import Checkpoint
from tests.crash.small import DOMAIN, FormulaScorer
from tests.crash.traffic import START_MS, Item, Traffic


def records_of(items: Iterable[Item], start: int = 0, partition: int = 0) -> list[MemoryRecord]:
    return [
        MemoryRecord(item.topic, partition, start + i, START_MS, item.key, item.value, item.headers)
        for i, item in enumerate(items)
    ]


class Bench:
    """A pipeline and a turn without Kafka."""

    def __init__(self, *scorers: Scorer, given: dict[str, object] | None = None, arena: int = 256) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.settings: Settings = load_settings(None, {}, given or {}).settings
        self.state = FeatureState(DOMAIN, accounts=arena, entities=arena, use_others=False)
        self.lineup = Lineup()
        rates = Rates.base_only("USD")
        self.pipeline = Pipeline(DOMAIN, rates, BatchSettings(), self.state, self.lineup, self.metrics)
        self.store = MemoryStore("turn", DOMAIN.spec_id)
        self.keeper = RowKeeper(self.state, self.store, self.metrics, share_entities=False)
        judge = Judge(DOMAIN, DEFAULT_POLICY, self.settings.records, rates_version=rates.version)
        self.turn = Turn(
            self.settings, self.pipeline, judge, self.keeper, self.metrics, ManualClock(START_MS),
            engine_version="1.2.3", same_partitions=("risk-scores", "transactions.dlq"),
        )  # fmt: skip
        self.turn.change_models([Change(CHAMPION, scorer) for scorer in scorers])
        self.flushes = 0

    def share(self, transactions: Sequence[Item], labels: Sequence[Item] = (), number: int = 0) -> Share:
        head = self.store.load_head(number) or self.store.claim(number, "turn-w0", 0)
        partition = Partition(number, Phase.RUNNING, Checkpoint(0, 0), head)
        return Share(partition, list(records_of(labels, 0, number)), list(records_of(transactions, 0, number)))

    def run(self, *shares: Share) -> TurnResult:
        self.shares = list(shares)
        return self.turn.run(self.shares, self.flush)

    def flush(self) -> None:
        self.flushes += 1

    def shown(self, role: str) -> str:
        """The name of the model that the metrics tell of."""
        samples = next(iter(self.metrics.model.collect())).samples
        return next((sample.labels["name"] for sample in samples if sample.labels["role"] == role), "")

    def fold(self, items: Iterable[Item], start: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and positions of the new events of a batch that begins at this offset."""
        batch = self.pipeline.decode_events(records_of(items, start)).batch
        self.state.next_turn()
        self.state.admit_new(batch)
        scored = self.pipeline.score(batch, self.pipeline.fold_events(batch))
        return (
            np.full(len(scored.index), np.nan) if scored.scores is None else scored.scores.probability
        ), scored.index


def contents(result: TurnResult, topic: str) -> list[dict[str, object]]:
    return [json.loads(message.value) for message in result.messages if message.topic == topic]


@pytest.fixture
def traffic() -> Traffic:
    return Traffic(1, 1)


# --- decoding


def test_what_is_wrong_stands_beside_what_is_right(traffic: Traffic) -> None:
    """Columns and records are aligned, whatever lies between them."""
    items = [traffic.poison() if i % 3 == 1 else traffic.event() for i in range(12)]
    decoded = Bench().pipeline.decode_events(records_of(items, start=100))
    assert [record.offset for record, _ in decoded.rejects] == [101, 104, 107, 110]
    assert (
        decoded.batch.offset.tolist() == [r.offset for r in decoded.records] == [100, 102, 103, 105, 106, 108, 109, 111]
    )
    for record, event in zip(decoded.records, decoded.batch.events, strict=True):
        assert json.loads(record.value or b"")["event_id"] == event["event_id"]
    assert all(reject.reason for _, reject in decoded.rejects)


def test_labels_likewise(traffic: Traffic) -> None:
    traffic.event("a")
    good = traffic.label(traffic.past["a"][0])
    decoded = Bench().pipeline.decode_labels(records_of([good, Item("labels", b"k", b"{}"), good]))
    assert decoded.batch.offset.tolist() == [0, 2]
    assert [record.offset for record, _ in decoded.rejects] == [1]


def test_nothing_is_a_batch_too() -> None:
    bench = Bench(FormulaScorer())
    assert len(bench.pipeline.decode_events([]).batch) == 0
    assert len(bench.pipeline.decode_labels([]).batch) == 0
    assert bench.run().messages == []


# --- scoring


def test_duplicates_are_not_scored(traffic: Traffic) -> None:
    scorer = FormulaScorer()
    first, second = traffic.event("a"), traffic.event("a")
    _, index = Bench(scorer).fold([first, second, first, second, first])
    assert index.tolist() == [0, 1]


def test_a_batch_of_duplicates_asks_no_model(traffic: Traffic) -> None:
    scorer = FormulaScorer()
    bench = Bench(scorer)
    item = traffic.event("a")
    bench.fold([item])
    probability, index = bench.fold([item, item], start=1)
    assert (scorer.calls, len(probability), len(index)) == (1, 0, 0)


def test_a_score_does_not_depend_on_how_the_log_is_cut(traffic: Traffic) -> None:
    items = [traffic.event() for _ in range(120)]
    whole, _ = Bench(FormulaScorer()).fold(items)
    for seed in range(4):
        bench, draw, start = Bench(FormulaScorer()), random.Random(seed), 0
        parts = []
        while start < len(items):
            size = draw.randint(1, 30)
            parts.append(bench.fold(items[start : start + size], start)[0])
            start += size
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6, rtol=0)


def test_a_model_that_fails_gives_way_to_the_one_before_it_and_then_to_none(traffic: Traffic) -> None:
    old, new = FormulaScorer("old", fails_after=2), FormulaScorer("new", fails_after=1)
    bench = Bench(old, new)
    found = []
    for number in range(4):
        bench.state.next_turn()
        batch = bench.pipeline.decode_events(records_of([traffic.event(f"x{number}")], number)).batch
        bench.state.admit_new(batch)
        scored = bench.pipeline.score(batch, bench.pipeline.fold_events(batch))
        found.append(scored.scorer.manifest.name if scored.scorer is not None else None)
        assert (scored.scores is None) == (scored.scorer is None)
        assert bench.shown(CHAMPION) == (found[-1] or "")
    assert found == ["new", "old", "old", None]
    assert bench.metrics.model_failures._value.get() == 2
    assert bench.lineup.current() is None


def test_a_challenger_that_fails_leaves(traffic: Traffic) -> None:
    bench = Bench(FormulaScorer("champion"))
    bench.turn.change_models([Change(CHALLENGERS[0], FormulaScorer("weak", fails_after=1))])
    assert bench.shown(CHALLENGERS[0]) == "weak"
    for number, roles in enumerate((CHALLENGERS[:1], (), ())):
        batch = bench.pipeline.decode_events(records_of([traffic.event(f"x{number}")], number)).batch
        bench.state.admit_new(batch)
        scored = bench.pipeline.score(batch, bench.pipeline.fold_events(batch))
        assert tuple(scored.shadows) == roles
        assert scored.scores is not None
    assert bench.metrics.model_failures._value.get() == 1
    assert bench.shown(CHALLENGERS[0]) == ""


# --- a turn


def test_a_turn_has_one_message_per_outcome(traffic: Traffic) -> None:
    events = [traffic.event() for _ in range(40)]
    items = [*events[:20], traffic.poison(), events[3], *events[20:], traffic.poison()]
    bench = Bench(FormulaScorer())
    result = bench.run(bench.share(items))
    scores, alerts, dead = (contents(result, t) for t in ("risk-scores", "alerts", "transactions.dlq"))
    assert [score["event_id"] for score in scores] == [json.loads(item.value or b"")["event_id"] for item in events]
    assert [RiskScore.model_validate(score).origin.offset for score in scores] == [*range(20), *range(22, 42)]
    assert [DeadLetter.model_validate(letter).origin.offset for letter in dead] == [20, 42]
    suspicious = [score["event_id"] for score in scores if score["decision"] != "approve"]
    assert [Alert.model_validate(alert).event_id for alert in alerts] == suspicious
    assert 0 < len(suspicious) < 40


def test_messages_go_to_the_partition_of_their_event_where_the_counts_agree(traffic: Traffic) -> None:
    """Elsewhere by key. Both keep an account's records together."""
    bench = Bench(FormulaScorer())
    events = [traffic.event() for _ in range(30)]
    result = bench.run(bench.share(events, number=3))
    for message in result.messages:
        assert message.partition == (3 if message.topic == "risk-scores" else None)
        assert message.key in {item.key for item in events}


def test_the_trace_goes_along_and_a_dead_letter_has_all_of_its_message(traffic: Traffic) -> None:
    bench = Bench(FormulaScorer())
    poison = Item("transactions", b"k", b"\xff not json", (("traceparent", b"00-ab"), ("other", b"\x00")))
    good = Item("transactions", *_key_and_value(traffic.event()), (("traceparent", b"00-cd"),))
    result = bench.run(bench.share([poison, good]))
    (letter,) = contents(result, "transactions.dlq")
    found = DeadLetter.model_validate(letter)
    assert base64.b64decode(found.value or "") == poison.value
    assert base64.b64decode(found.key or "") == b"k"
    assert [(h.name, base64.b64decode(h.value or "")) for h in found.headers] == list(poison.headers)
    assert found.engine_version == "1.2.3"
    assert found.origin.timestamp_ms == START_MS
    headers = {message.topic: dict(message.headers).get("traceparent") for message in result.messages}
    assert headers["transactions.dlq"] == b"00-ab"
    assert headers["risk-scores"] == b"00-cd"


def _key_and_value(item: Item) -> tuple[bytes, bytes | None]:
    return item.key, item.value


def test_labels_come_before_the_events_of_their_turn(traffic: Traffic) -> None:
    bench = Bench(FormulaScorer(), given={"records.features": "all"})
    first = traffic.event("a")
    label = traffic.label(traffic.past["a"][0], fraud=True)
    bench.run(bench.share([first]))
    share = bench.share([traffic.event("a")], [label])
    share.records = records_of([traffic.event("a")], 1)  # type: ignore[assignment]
    (score,) = contents(bench.run(share), "risk-scores")
    assert score["labels_offset"] == 1
    assert score["features"]["account_frauds"] == 1.0  # type: ignore[index]


def test_a_poisoned_label_is_a_dead_letter(traffic: Traffic) -> None:
    bench = Bench(FormulaScorer())
    result = bench.run(bench.share([], [Item("labels", b"k", b"{}")]))
    (letter,) = contents(result, "transactions.dlq")
    assert letter["origin"]["topic"] == "labels"  # type: ignore[index]


def test_an_account_with_more_events_than_a_turn_may_fold_waits_with_the_rest(traffic: Traffic) -> None:
    """Its 33rd event, and all behind it, in this and in later shares."""
    bench = Bench(FormulaScorer())
    many = bench.share([*(traffic.event("x") for _ in range(3)), *(traffic.event("a") for _ in range(40))], number=0)
    behind = bench.share([traffic.event("b")], number=1)
    result = bench.run(bench.share([traffic.event("c")], number=2), many, behind)
    assert len(contents(result, "risk-scores")) == 1 + 3 + 32
    assert many.end() == (35, 0)
    assert [len(share.records) for share in bench.shares] == [1, 35]
    assert [r.offset for r in many.partition.waiting_records] == list(range(35, 43))
    assert [r.offset for r in behind.partition.waiting_records] == [0]


def test_labels_past_the_limit_hold_up_all_transactions(traffic: Traffic) -> None:
    bench = Bench(FormulaScorer())
    events = [traffic.event("a") for _ in range(12)]
    labels = [traffic.label(event, fraud=True) for event in traffic.past["a"]]
    bench.run(bench.share(events))
    share = bench.share([traffic.event("b")], labels)
    result = bench.run(share)
    assert result.messages == []
    assert share.end() == (0, 8)
    assert len(share.partition.waiting_labels) == 4
    assert len(share.partition.waiting_records) == 1


def test_a_store_that_is_away_leaves_the_turn_undone(traffic: Traffic) -> None:
    bench = Bench(FormulaScorer())
    share = bench.share([traffic.event("a")])
    bench.store.server.available = False
    with pytest.raises(UnavailableError):
        bench.run(share)
    assert len(share.records) == 1
    bench.store.server.available = True
    assert len(contents(bench.run(share), "risk-scores")) == 1


def test_a_full_arena_is_flushed_once_and_then_too_small(traffic: Traffic) -> None:
    bench = Bench(FormulaScorer(), arena=4)
    bench.run(bench.share([traffic.event(name, merchant_id="m", device_id=None) for name in "abc"]))
    assert bench.flushes == 0
    with pytest.raises(ConfigError, match=r"state\.arena_accounts.*batch\.max_events"):
        bench.run(bench.share([traffic.event(name, merchant_id="m", device_id=None) for name in "defgh"]))
    assert bench.flushes == 1


def test_a_model_that_cannot_explain_still_alerts(traffic: Traffic, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score is there; the reasons are left out."""
    scorer = FormulaScorer()
    bench = Bench(scorer)
    score = scorer.score
    calls = []

    def fails_the_second_time(*arguments: np.ndarray) -> object:
        calls.append(len(arguments[1]))
        if len(calls) > 1:
            raise ScoringFailed("it will not be explained")
        return score(*arguments)

    monkeypatch.setattr(scorer, "score", fails_the_second_time)
    result = bench.run(bench.share([traffic.event(f"a{i % 10}") for i in range(60)]))
    alerts = contents(result, "alerts")
    assert len(alerts) > 0
    assert all(alert["reasons"] == [] for alert in alerts)
    assert len(contents(result, "risk-scores")) == 60
    assert bench.lineup.current() is scorer


def test_what_a_turn_did_is_counted(traffic: Traffic) -> None:
    bench = Bench(FormulaScorer())
    first = traffic.event("a")
    share = bench.share([first, first, traffic.poison(), traffic.event("b")], [traffic.label(traffic.past["a"][0])])
    result = bench.run(share)
    bench.turn.count(bench.shares, result)
    counted = {
        outcome: bench.metrics.events.labels(outcome, "0")._value.get()
        for outcome in ("scored", "duplicate", "dead_letter")
    }
    assert counted == {"scored": 2, "duplicate": 1, "dead_letter": 1}
    assert bench.metrics.identity_gap.labels("0")._value.get() == 0
    assert bench.metrics.labels.labels("folded")._value.get() == 1
