"""Training, offline scoring and the worker make the same vectors of the same events: to 1e-6, all columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from models.history import training_set
from stream import app
from stream.clock import ManualClock
from stream.config import load_settings
from stream.domains.payments import DOMAIN
from stream.features.money import Rates
from stream.history.batch import HistoryBatch, LabelQueue, iterate_slices
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.kafka.port import TopicPartition
from stream.metrics import Metrics
from stream.simulate.simulation import Simulation
from stream.state.memory import MemoryStore
from tests.crash.small import FormulaScorer

TOPICS = ("transactions", "labels", "risk-scores", "alerts", "transactions.dlq")
GIVEN = {"records.features": "all", "state.entity_scope": "own", "batch.max_events": 64, "batch.max_wait_ms": 0}


@pytest.fixture(scope="module")
def history() -> HistoryBatch:
    return Simulation(accounts=25, seed=9, fraud_rate=0.05).generate(800)


def trained(history: HistoryBatch) -> np.ndarray:
    rates = Rates.base_only("USD")
    return training_set(iterate_slices(history, 300), DOMAIN, rates, until_ms=2**62).aggregates


def by_event(records: Sequence[dict[str, Any]], history: HistoryBatch) -> np.ndarray:
    """The vectors of score records in the order of the history."""
    features = {record["event_id"]: record["features"] for record in records}
    columns = [column.name for column in DOMAIN.aggregate_columns]
    rows = [[features[event_id][name] for name in columns] for event_id in history.text["event_id"].tolist()]
    return np.array(rows, dtype=np.float64)


def offline(history: HistoryBatch) -> np.ndarray:
    settings = load_settings(None, {}, GIVEN).settings
    scorer = app.OfflineScorer(settings, DOMAIN, FormulaScorer(), ManualClock(int(history.time_ms[-1])))
    records = [record for part in scorer.records(iterate_slices(history, 210)) for record in part]
    return by_event(json.loads(json.dumps(records).replace("NaN", "null")), history)


def online(history: HistoryBatch) -> np.ndarray:
    """A worker over ports in memory; a label is published once its time has come, as `replay` does."""
    clock = ManualClock(int(history.time_ms[-1]) + 1)
    broker = MemoryBroker(clock)
    for topic in TOPICS:
        broker.create_topic(topic, partitions=1)
    settings = load_settings(None, {}, GIVEN).settings
    worker = app.build_worker(
        settings, DOMAIN, MemoryKafka(broker, settings.kafka), MemoryStore("one", DOMAIN.spec_id),
        Metrics(CollectorRegistry()), scorer=FormulaScorer(), clock=clock,
    )  # fmt: skip
    worker.start()
    for _ in range(3):
        worker.run_once()
    queue, waiting = LabelQueue("fraud"), 0

    def publish(topic: str, messages: Sequence[dict[str, Any]]) -> None:
        for message in messages:
            broker.append(topic, json.dumps(message).encode(), key=message["account_id"].encode())
        clock.advance_ms(1_000)
        for _ in range(2 + len(messages) // 8):
            worker.run_once()

    for row, time_ms in enumerate(history.time_ms.tolist()):
        if due := queue.pop(time_ms):
            publish("transactions", history.take(slice(waiting, row)).events())
            publish("labels", due)
            waiting = row
        queue.push(history.take(slice(row, row + 1)))
    publish("transactions", history.take(slice(waiting, len(history))).events())
    records, _ = broker.log(TopicPartition("risk-scores", 0)).read(0, 10**6)
    return by_event([json.loads(record.value or b"") for record in records], history)


def test_training_offline_and_online_agree(history: HistoryBatch) -> None:
    expected = trained(history)
    known = ~np.isnan(expected)
    assert (expected[:, [c.name == "frauds_30d" for c in DOMAIN.aggregate_columns]] > 0).sum() > 20
    for made in (offline(history), online(history)):
        assert np.array_equal(~np.isnan(made), known)
        np.testing.assert_allclose(made[known], expected[known], rtol=1e-6, atol=1e-6)


def test_any_number_of_partitions_makes_the_same_step_vectors(history: HistoryBatch) -> None:
    """Aggregates too, but for what the other partitions saw in the same batch."""
    rates = Rates.base_only("USD")
    one, four = (
        training_set(iterate_slices(history, 300), DOMAIN, rates, until_ms=2**62, partitions=count) for count in (1, 4)
    )
    assert one.steps.tobytes() == four.steps.tobytes()
    assert np.isclose(one.aggregates, four.aggregates, rtol=1e-6, equal_nan=True).mean() > 0.98
