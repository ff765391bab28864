"""A state that is built beside the workers: the same rows as theirs, never ahead of the group, never theirs."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from stream import app
from stream.clock import SystemClock
from stream.config import Settings, load_settings
from stream.domains.payments import DOMAIN
from stream.engine.building import CommittedOffsets, StateBuilder
from stream.engine.worker import Worker
from stream.errors import ConfigError
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.kafka.port import TopicPartition
from stream.metrics import Metrics
from stream.state.memory import MemoryServer, MemoryStore
from stream.state.store import Checkpoint
from tests.broker.harness import label_of, messages_of, payments

PARTITIONS = 2
EVENTS = list(payments(600, accounts=15))
LABELS = [label_of(event) for event in EVENTS[:300:30]]


class World:
    """A broker and a store in memory, and a worker of the group that serves from the namespace `old`."""

    def __init__(self) -> None:
        self.broker, self.server, self.clock = MemoryBroker(), MemoryServer(), SystemClock()
        self.settings = self.with_namespace("old")
        self.client = MemoryKafka(self.broker, self.settings.kafka)
        topics = self.settings.topics
        for topic in (topics.transactions, topics.labels, topics.scores, topics.alerts, topics.dead_letters):
            self.broker.create_topic(topic, partitions=PARTITIONS)

    def with_namespace(self, name: str) -> Settings:
        given = {"redis.namespace": name, "state.entity_scope": "own", "batch.max_events": 50, "batch.max_wait_ms": 0}
        given |= {"state.arena_accounts": 128, "state.arena_entities": 128}
        return load_settings(None, {}, given | {"records.features": "all"}).settings

    def store(self, namespace: str) -> MemoryStore:
        return MemoryStore(namespace, DOMAIN.spec_id, self.server)

    def publish(self, contents: Sequence[dict[str, Any]], topic: str) -> None:
        producer = self.client.plain_producer()
        for message in messages_of(contents):
            producer.produce(topic, message.value, key=message.key)
        producer.flush()

    def worker(self, namespace: str = "old") -> Worker:
        settings = self.with_namespace(namespace)
        metrics = Metrics(CollectorRegistry())
        store = self.store(namespace)
        made = app.build_worker(settings, DOMAIN, self.client, store, metrics, scorer=None, clock=self.clock)
        made.start()
        return made

    def committed(self) -> dict[int, Checkpoint]:
        topics = self.settings.topics
        asked = [TopicPartition(topic, n) for topic in (topics.transactions, topics.labels) for n in range(PARTITIONS)]
        found = self.client.admin().last_committed(self.settings.kafka.group, asked)
        return {
            n: Checkpoint(*(found[TopicPartition(t, n)].offset for t in (topics.transactions, topics.labels)))
            for n in range(PARTITIONS)
        }

    def run(self, worker: Worker) -> None:
        """Until everything published is committed, and flushed."""
        reader, topics = self.client.reader(), self.settings.topics
        ends = {
            n: tuple(reader.end_offset(TopicPartition(t, n)) for t in (topics.transactions, topics.labels))
            for n in range(PARTITIONS)
        }
        for _ in range(5_000):
            worker.run_once()
            found = self.client.admin().last_committed(
                self.settings.kafka.group,
                [TopicPartition(t, n) for t in topics_of(self.settings) for n in range(PARTITIONS)],
            )
            if len(found) == 2 * PARTITIONS and self.committed() == ends:
                worker.flush_all()
                return
        raise AssertionError("the worker does not come to an end")

    def build(self, namespace: str = "new", **options: Any) -> tuple[dict[int, Checkpoint | None], int]:
        stop = options.pop("stop", threading.Event())
        chosen = {"follow": False, "quick_s": 60.0, "tell": lambda number, left: None} | options
        settings, store = self.with_namespace(namespace), self.store(namespace)
        positions, cold = app.build_state(settings, self.client, store, DOMAIN, self.clock, stop, **chosen)
        return dict(positions), cold

    def rows(self, namespace: str) -> dict[tuple[str, int, str], bytes | None]:
        """Every row of the namespace by what it is of."""
        store = self.store(namespace)
        names = [("account", event["account_id"]) for event in EVENTS]
        names += [("merchant", event["merchant_id"]) for event in EVENTS]
        names += [("device", event["device_id"]) for event in EVENTS]
        found: dict[tuple[str, int, str], bytes | None] = {}
        for number in range(PARTITIONS):
            head = store.load_head(number)
            assert head is not None
            keys = [store.row_key(number, kind, identity) for kind, identity in names]
            for (kind, identity), row in zip(names, store.load_rows(keys, {number: head}), strict=True):
                found[kind, number, identity] = row
        return found

    def scores(self) -> list[dict[str, Any]]:
        reader = self.client.reader()
        reader.assign({TopicPartition(self.settings.topics.scores, n): 0 for n in range(PARTITIONS)})
        found = []
        while batches := reader.poll(1_000, 10):
            found += [json.loads(record.value or b"") for records in batches.values() for record in records]
        return found


def topics_of(settings: Settings) -> tuple[str, str]:
    return settings.topics.transactions, settings.topics.labels


@pytest.fixture
def world() -> World:
    """A group that has served 400 events and their labels."""
    made = World()
    worker = made.worker()
    for contents, topic in ((EVENTS[:300], 0), (LABELS, 1), (EVENTS[300:400], 0)):
        made.publish(contents, topics_of(made.settings)[topic])
        made.run(worker)
    worker.finish()
    return made


def test_the_rows_are_those_of_the_worker_that_served(world: World) -> None:
    positions, cold_until_ms = world.build()
    assert positions == world.committed()
    assert cold_until_ms == 0
    built, served = world.rows("new"), world.rows("old")
    assert sum(row is not None for row in served.values()) > 30
    assert built == served


def test_it_never_passes_what_the_group_has_committed(world: World) -> None:
    before = world.committed()
    world.publish(EVENTS[400:], world.settings.topics.transactions)
    assert world.build()[0] == before
    assert len(world.scores()) == 400


def test_a_group_that_commits_all_the_while_does_not_hold_it_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the committed offset is asked for it has moved since the last time, and a round ends all the same."""
    worker, more, stop = world.worker(), payments(5_000, seed=9, accounts=15), threading.Event()
    ask, asked = CommittedOffsets.committed, [0]

    def moving(self: CommittedOffsets, *arguments: Any, **options: Any) -> Any:
        asked[0] += 1
        if asked[0] == 100:
            stop.set()
        world.publish(list(itertools.islice(more, 8)), world.settings.topics.transactions)
        world.run(worker)
        return ask(self, *arguments, **options)

    monkeypatch.setattr(CommittedOffsets, "committed", moving)
    world.build(stop=stop)
    assert asked[0] < 20, "it begins again and again"


def test_a_second_call_goes_on_where_the_first_ended(world: World) -> None:
    world.build()
    worker = world.worker()
    world.publish(EVENTS[400:], world.settings.topics.transactions)
    world.run(worker)
    told: list[int] = []
    assert world.build(tell=lambda number, left: told.append(left))[0] == world.committed()
    assert max(told, default=0) <= 200
    assert world.rows("new") == world.rows("old")


def test_a_worker_of_the_new_state_replays_the_rest_and_scores_nothing_cold(world: World) -> None:
    world.build()
    old = world.worker()
    world.publish(EVENTS[400:500], world.settings.topics.transactions)
    world.run(old)
    old.finish()
    new = world.worker("new")
    world.publish(EVENTS[500:], world.settings.topics.transactions)
    world.run(new)
    scores = world.scores()
    assert len(scores) == len(EVENTS)
    assert not any("cold" in score["flags"] for score in scores)
    # Without the building: the same scores, but the worker would have had to rebuild first.
    other = World()
    worker = other.worker()
    for contents, topic in ((EVENTS[:300], 0), (LABELS, 1), (EVENTS[300:], 0)):
        other.publish(contents, topics_of(other.settings)[topic])
        other.run(worker)
    features = {score["event_id"]: score["features"] for score in other.scores()}
    assert {score["event_id"]: score["features"] for score in scores} == features


def test_a_state_that_a_worker_serves_from_is_refused(world: World) -> None:
    with pytest.raises(ConfigError, match=r"riskstream-worker-0 serves from this state already.*redis\.namespace"):
        world.build("old")
    worker = world.worker()
    world.publish(EVENTS[400:], world.settings.topics.transactions)
    world.run(worker)
    assert len(world.scores()) == len(EVENTS), "the worker was not disturbed"


def test_it_ends_when_workers_have_taken_over(world: World) -> None:
    world.build()
    settings, store = world.with_namespace("new"), world.store("new")
    builder = builder_of(world, settings, store)
    builder.check()
    builder.round(threading.Event(), lambda number, left: None)
    assert set(builder.positions) == {0, 1}
    worker = world.worker("new")
    world.publish(EVENTS[400:], world.settings.topics.transactions)
    world.run(worker)
    builder.round(threading.Event(), lambda number, left: None)
    assert builder.positions == {}
    worker.finish()


def test_a_store_that_loses_the_state_meanwhile_is_filled_again(world: World) -> None:
    settings, store = world.with_namespace("new"), world.store("new")
    builder = builder_of(world, settings, store)
    builder.round(threading.Event(), lambda number, left: None)
    served = world.rows("old")
    world.server.flush_all()
    world.worker().finish()
    world.publish(EVENTS[400:], world.settings.topics.transactions)
    worker = world.worker()
    world.run(worker)
    builder.round(threading.Event(), lambda number, left: None)
    assert dict(builder.positions) == world.committed()
    assert world.rows("new") == world.rows("old") != served
    worker.finish()


def test_a_log_without_its_beginning_makes_the_workers_scores_cold(world: World) -> None:
    for number in range(PARTITIONS):
        world.broker.delete_before(TopicPartition(world.settings.topics.transactions, number), 50)
    _, cold_until_ms = world.build()
    assert cold_until_ms > world.clock.now_ms()
    world.build()  # the mark stays
    new = world.worker("new")
    world.publish(EVENTS[400:], world.settings.topics.transactions)
    world.run(new)
    late = [score for score in world.scores() if score["event_id"] in {event["event_id"] for event in EVENTS[400:]}]
    assert len(late) == 200
    assert all("cold" in score["flags"] for score in late)


def builder_of(world: World, settings: Settings, store: MemoryStore) -> StateBuilder:
    parts = app.state_parts(settings, world.client, store, DOMAIN, world.clock, PARTITIONS, scores_aligned=True)
    offsets = CommittedOffsets(world.client.reader(), world.client.admin(), settings.kafka.group)
    return StateBuilder(settings, store, *parts, offsets, world.clock, PARTITIONS)
