"""A whole worker over the in-memory ports, fed chunk by chunk: rules only, no servers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry

from stream import app
from stream.clock import SystemClock
from stream.config import BatchSettings, Settings
from stream.domains.payments import DOMAIN
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.kafka.port import TopicPartition
from stream.metrics import Metrics
from stream.scoring.scorer import Scorer
from stream.state.memory import MemoryStore
from stream.topics import topic_names

PARTITIONS = 2
_MOST_TURNS = 1_000


class Sent(Protocol):
    """A message for one of the inputs."""

    @property
    def is_label(self) -> bool: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def arrived_ms(self) -> int: ...


class MemoryWorker:
    """Answers each message with its outcome. What has been answered is dropped, so that memory stays bounded."""

    def __init__(self, limits: BatchSettings, scorer: Scorer | None = None) -> None:
        settings = Settings(batch=limits)
        self._settings, self._broker = settings, MemoryBroker()
        for name in topic_names(settings):
            self._broker.create_topic(name, partitions=PARTITIONS)
        client = MemoryKafka(self._broker, settings.kafka)
        self._metrics = Metrics(CollectorRegistry())
        store = MemoryStore(settings.state_namespace, DOMAIN.spec_id)
        self._worker = app.build_worker(
            settings, DOMAIN, client, store, self._metrics, scorer=scorer, clock=SystemClock()
        )
        self._admin, self._reader = client.admin(), client.reader()
        self._worker.start()
        self._numbers = 0
        self.unanswered = 0
        """Of the last chunk: events that are neither scored, nor dead, nor counted as duplicates."""

    def work_off(self, messages: Sequence[Sent]) -> list[str]:
        """Publishes and does them; "scored", "duplicate", "dead" or "folded" for each. Raises what stops the worker."""
        topics = self._settings.topics
        origins: list[tuple[str, int, int]] = []
        before = self._duplicates()
        for message in messages:
            self._numbers += 1
            topic = topics.labels if message.is_label else topics.transactions
            place = TopicPartition(topic, self._numbers % PARTITIONS)
            origins.append((*place, self._broker.log(place).next_offset))
            self._broker.append(
                topic, message.value, key=b"k", partition=place.partition, timestamp_ms=message.arrived_ms
            )
        self._run_until_done()
        found = self._outcomes()
        silent = [origin for origin in origins if origin not in found]
        repeats = sum(topic == topics.transactions for topic, _, _ in silent)
        self.unanswered = repeats - (self._duplicates() - before)
        return [found.get(o, "folded" if o[0] == topics.labels else "duplicate") for o in origins]

    def _run_until_done(self) -> None:
        inputs = self._partitions(self._settings.topics.transactions, self._settings.topics.labels)
        ends = {tp: self._reader.end_offset(tp) for tp in inputs}
        for _ in range(_MOST_TURNS):
            self._worker.run_once()
            committed = self._admin.last_committed(self._settings.kafka.group, inputs)
            if all(end == 0 or (tp in committed and committed[tp].offset >= end) for tp, end in ends.items()):
                return
        raise AssertionError("the worker does not come to an end")

    def _outcomes(self) -> dict[tuple[str, int, int], str]:
        """Of the chunk, by origin; drops what was read, and the inputs that it answers."""
        topics = self._settings.topics
        found: dict[tuple[str, int, int], str] = {}
        for topic, outcome in ((topics.scores, "scored"), (topics.dead_letters, "dead")):
            self._reader.assign({tp: self._reader.first_offset(tp) for tp in self._partitions(topic)})
            while records := [record for batch in self._reader.poll(10_000, 0).values() for record in batch]:
                for record in records:
                    origin = json.loads(record.value or b"")["origin"]
                    found[origin["topic"], origin["partition"], origin["offset"]] = outcome
        for tp in self._partitions(*topic_names(self._settings)):
            self._broker.delete_before(tp, self._reader.end_offset(tp))
        return found

    def _partitions(self, *topics: str) -> list[TopicPartition]:
        return [TopicPartition(topic, number) for topic in topics for number in range(PARTITIONS)]

    def _duplicates(self) -> int:
        return sum(
            int(sample.value)
            for family in self._metrics.events.collect()
            for sample in family.samples
            if sample.name == "riskstream_events_total" and sample.labels["outcome"] == "duplicate"
        )
