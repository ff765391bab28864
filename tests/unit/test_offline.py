"""Scoring a history without servers gives what the worker gives: same partitions, offsets, labels and probabilities."""

from __future__ import annotations

import heapq
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from stream import app
from stream.clock import ManualClock
from stream.config import load_settings
from stream.events.moments import moment_text
from stream.features.money import Rates
from stream.history.batch import UNKNOWN, HistoryBatch, WireContract, concatenate, iterate_slices
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.kafka.partitioner import partition_for
from stream.kafka.port import TopicPartition
from stream.metrics import Metrics
from stream.offline import HistoryReplay, RecordedLabels, Verdicts, published_labels
from stream.state.memory import MemoryStore
from tests.crash.small import DOMAIN, FormulaScorer

CONTRACT = WireContract.of(DOMAIN.event, DOMAIN.label)
START_MS = 1_690_000_000_000
NOW_MS = 1_700_000_000_000
TOPICS = ("transactions", "labels", "risk-scores", "alerts", "transactions.dlq")


def history(seed: int, events: int, *, entities: int = 5) -> HistoryBatch:
    """Random payments in order of time; a tenth are frauds, known up to two days later, some at once."""
    draw = random.Random(seed)
    time_ms = START_MS + np.cumsum([draw.choice((0, 1, 60_000, 900_000)) for _ in range(events)]).astype(np.int64)
    fraud = np.array([draw.choice((UNKNOWN, 0, 0, 0, 0, 0, 0, 0, 0, 1)) for _ in range(events)], dtype=np.int8)
    delay = np.array([draw.choice((0, 1_000, 3_600_000, 172_800_000)) for _ in range(events)], dtype=np.int64)

    def texts(make: Any) -> Any:
        return np.array([make(i) for i in range(events)], dtype=object)

    return HistoryBatch(
        contract=CONTRACT,
        time_ms=time_ms,
        text={
            "event_id": texts(lambda i: f"e{i}"),
            "account_id": texts(lambda i: f"a{draw.randrange(12)}"),
            "currency": texts(lambda i: "USD"),
            "merchant_id": texts(lambda i: f"m{draw.randrange(entities)}"),
            "mcc": texts(lambda i: "5411"),
            "country": texts(lambda i: "US"),
            "channel": texts(lambda i: "pos"),
            "device_id": texts(lambda i: draw.choice((None, f"d{draw.randrange(entities)}"))),
        },
        numbers={"amount": np.array([round(draw.lognormvariate(3, 1), 2) for _ in range(events)])},
        fraud=fraud,
        known_ms=np.where(fraud == UNKNOWN, 2**62, time_ms + delay),
    )


def offline(
    batches: Sequence[HistoryBatch], labels: Verdicts | RecordedLabels, *, partitions: int = 1, scope: str = "all"
) -> list[dict[str, Any]]:
    """Score records in the order of the history."""
    settings = load_settings(None, {}, {"records.features": "all", "state.entity_scope": scope}).settings
    scorer = app.OfflineScorer(
        settings, DOMAIN, FormulaScorer(), ManualClock(NOW_MS), partitions=partitions, labels=labels
    )
    return [record for records in scorer.records(batches) for record in records]


class Online:
    """The worker over the in-memory ports, fed event by event."""

    def __init__(self, partitions: int) -> None:
        self.clock = ManualClock(NOW_MS)
        self.broker = MemoryBroker(self.clock)
        for topic in TOPICS:
            self.broker.create_topic(topic, partitions=partitions)
        self.partitions = partitions
        given = {"records.features": "all", "state.entity_scope": "own", "batch.max_events": 16, "batch.max_wait_ms": 0}
        settings = load_settings(None, {}, given).settings
        client = MemoryKafka(self.broker, settings.kafka)
        self.worker = app.build_worker(
            settings, DOMAIN, client, MemoryStore("online", DOMAIN.spec_id), Metrics(CollectorRegistry()),
            scorer=FormulaScorer(), clock=self.clock,
        )  # fmt: skip
        self.worker.start()
        for _ in range(3):
            self.worker.run_once()

    def publish(self, topic: str, messages: Sequence[dict[str, Any]]) -> None:
        for message in messages:
            self.broker.append(topic, json.dumps(message).encode(), key=message["account_id"].encode())
        self.clock.advance_ms(1_000)

    def scores(self) -> list[dict[str, Any]]:
        """Score records by event id, once all is done."""
        for _ in range(200):
            self.worker.run_once()
        found = []
        for partition in range(self.partitions):
            records, _ = self.broker.log(TopicPartition("risk-scores", partition)).read(0, 10**6)
            found += [json.loads(record.value or b"") for record in records]
        return found


def assert_same(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> None:
    mine, theirs = ({record["event_id"]: record for record in records} for records in (one, other))
    assert mine.keys() == theirs.keys()
    assert len(one) == len(other) == len(mine)
    for event_id, record in mine.items():
        expected = theirs[event_id]
        for name in set(record) - {"scored_at", "entity_view_age_ms", "probability", "components", "features"}:
            assert record[name] == expected[name], name
        assert record["probability"] == pytest.approx(expected["probability"], abs=1e-6)
        numbers = [np.array(list(r["features"].values()), dtype=np.float64) for r in (record, expected)]
        np.testing.assert_allclose(*numbers, rtol=1e-6, atol=1e-6)


# --- against the worker


@pytest.mark.parametrize("partitions", [1, 3])
def test_a_history_without_labels_scores_as_it_does_on_kafka(partitions: int) -> None:
    """With several partitions where every entity's events are of one: the merchants here are the accounts' own."""
    batch = history(1, 250)
    batch.text["merchant_id"] = batch.text["account_id"]
    batch.text["device_id"] = batch.text["account_id"]
    online = Online(partitions)
    online.publish("transactions", batch.events())
    assert_same(offline([batch], "none", partitions=partitions), online.scores())


def test_duplicates_are_counted_and_left_out() -> None:
    batch = history(2, 60)
    twice = concatenate([batch, batch.take(slice(50, 60))])
    settings = load_settings(None, {}, {}).settings
    scorer = app.OfflineScorer(settings, DOMAIN, None, ManualClock(NOW_MS), labels="none")
    assert sum(len(records) for records in scorer.records([twice])) == 60
    assert scorer.duplicates == 10


@pytest.mark.parametrize("partitions", [1, 2])
def test_labels_are_folded_where_a_run_on_kafka_folded_them(partitions: int) -> None:
    """Labels arrive between events at random; the scores say how many were known; offline repeats it."""
    draw = random.Random(partitions)
    batch = history(3, 200)
    batch.text["merchant_id"] = batch.text["account_id"]
    batch.text["device_id"] = batch.text["account_id"]
    online = Online(partitions)
    start = 0
    while start < len(batch):
        stop = start + draw.randint(1, 25)
        online.publish("transactions", batch.take(slice(start, stop)).events())
        online.publish("labels", batch.take(slice(max(0, start - 20), start)).labels())
        for _ in range(draw.randrange(4)):
            online.worker.run_once()
        start = stop
    scores = online.scores()
    assert len({score["labels_offset"] for score in scores}) > 5
    assert_same(offline([batch], _recorded(online, scores), partitions=partitions), scores)
    parts = list(iterate_slices(batch, 37))
    assert_same(offline(parts, _recorded(online, scores), partitions=partitions), scores)


def _recorded(online: Online, scores: Sequence[dict[str, Any]]) -> RecordedLabels:
    published, before = [], []
    for partition in range(online.partitions):
        records, _ = online.broker.log(TopicPartition("labels", partition)).read(0, 10**6)
        published.append([json.loads(record.value or b"") for record in records])
        own = sorted(
            (s["origin"]["offset"], s["labels_offset"]) for s in scores if s["origin"]["partition"] == partition
        )
        assert [offset for offset, _ in own] == list(range(len(own)))
        before.append(np.array([known for _, known in own], dtype=np.int64))
    return RecordedLabels(published, before)


# --- the order of labels and events


def naive_order(batch: HistoryBatch, verdicts: str) -> list[int]:
    """How many labels had become known before each event: those of earlier events, not younger than this one."""
    heap: list[tuple[int, int]] = []
    known = 0
    counts = []
    for row in range(len(batch)):
        while heap and heap[0][0] <= batch.time_ms[row]:
            heapq.heappop(heap)
            known += 1
        counts.append(known)
        if batch.fraud[row] == 1 or (verdicts == "all" and batch.fraud[row] == 0):
            heapq.heappush(heap, (int(batch.known_ms[row]), row))
    return counts


@pytest.mark.parametrize("verdicts", ["none", "fraud", "all"])
@pytest.mark.parametrize("seed", range(3))
def test_a_label_takes_part_from_the_moment_it_is_known(verdicts: Verdicts, seed: int) -> None:
    batch = history(10 + seed, 120)
    expected = [0] * len(batch) if verdicts == "none" else naive_order(batch, verdicts)
    assert [score["labels_offset"] for score in offline([batch], verdicts)] == expected
    assert [score["labels_offset"] for score in offline(list(iterate_slices(batch, 23)), verdicts)] == expected


def test_labels_change_what_follows_them() -> None:
    batch = history(20, 300)
    without, with_labels = offline([batch], "none"), offline([batch], "fraud")
    assert sum((score["features"]["account_frauds"] or 0) for score in without) == 0
    assert sum((score["features"]["account_frauds"] or 0) > 0 for score in with_labels) > 50


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("labels", ["none", "fraud"])
def test_the_cut_of_the_batches_does_not_show(size: int, labels: Literal["none", "fraud"]) -> None:
    batch = history(30, 150)
    assert_same(offline(list(iterate_slices(batch, size)), labels), offline([batch], labels))


def test_a_small_arena_changes_nothing() -> None:
    """Rows leave memory and come back through the offline store."""
    batch = history(31, 200, entities=9)
    found = []
    for accounts in (1_000, 9):
        replay = HistoryReplay(
            DOMAIN,
            Rates.base_only("USD"),
            Metrics(CollectorRegistry()),
            labels="fraud",
            batch_events=8,
            accounts=accounts,
        )
        found.append([replayed.assembled for replayed in replay.run([batch])])
        evicted = sum(pool.evictions for pool in replay.state.pools())
        assert (evicted > 0) == (accounts == 9)
    for one, other in zip(*found, strict=True):
        assert one.aggregates.tobytes() == other.aggregates.tobytes()
        assert one.steps.tobytes() == other.steps.tobytes()


# --- partitions


def test_events_get_the_partition_and_offset_of_their_keyed_record() -> None:
    batch = history(40, 120)
    scores = offline(list(iterate_slices(batch, 50)), "none", partitions=4)
    seen = [0] * 4
    expected = []
    for event in batch.events():
        partition = partition_for(event["account_id"].encode(), 4)
        expected.append({"topic": "transactions", "partition": partition, "offset": seen[partition]})
        seen[partition] += 1
    by_id = {score["event_id"]: score["origin"] for score in scores}
    assert [by_id[event["event_id"]] for event in batch.events()] == expected


def test_other_partitions_values_take_part() -> None:
    """A merchant's events lie in several partitions: with one partition and with four its count is the same."""
    events = list(iterate_slices(history(41, 60, entities=2), 1))
    one, four = offline(events, "none"), offline(events, "none", partitions=4)
    counts = [[score["features"]["merchant_count"] for score in scores] for scores in (one, four)]
    assert counts[0] == counts[1]
    assert any(score["entity_view_age_ms"] is not None for score in four)


def test_published_labels_are_those_of_the_topic_in_its_order() -> None:
    batch = history(42, 150)
    for partitions in (1, 3):
        found = published_labels(iterate_slices(batch, 40), DOMAIN, partitions, "fraud")
        assert sum(map(len, found)) == int((batch.fraud == 1).sum())
        for number, labels in enumerate(found):
            known = [label["labelled_at"] for label in labels]
            assert known == sorted(known)
            accounts = {label["account_id"] for label in labels}
            assert all(partitions == 1 or partition_for(a.encode(), partitions) == number for a in accounts)
        everything = published_labels(iterate_slices(batch, 40), DOMAIN, partitions, "all")
        assert sum(map(len, everything)) == int((batch.fraud != UNKNOWN).sum())


def test_the_history_may_be_a_stream() -> None:
    """Batches are taken one by one: a history larger than memory goes through."""
    batch, drawn = history(43, 90), []

    def stream() -> Iterator[HistoryBatch]:
        for part in iterate_slices(batch, 30):
            drawn.append(len(part))
            yield part

    replay = HistoryReplay(DOMAIN, Rates.base_only("USD"), Metrics(CollectorRegistry()), labels="fraud")
    results = replay.run(stream())
    first = next(results)
    assert drawn == [30]
    assert moment_text(int(first.history.time_ms[0])) == batch.events()[0]["timestamp"]
    assert sum(len(replayed.batch) for replayed in results) + len(first.batch) == 90
