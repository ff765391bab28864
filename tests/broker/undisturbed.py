"""What the scores must be: those of one worker in this process, over in-memory ports, that nothing ever disturbs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry

from stream import app
from stream.clock import SystemClock
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.kafka.port import KafkaClient, TopicPartition
from stream.metrics import Metrics
from stream.state.memory import MemoryStore
from tests.broker.harness import Deployment, Output, messages_of

_ENVELOPE = frozenset({"scored_at", "entity_view_age_ms"})
"""Fields of a score that tell when it was made, and so differ between two runs."""


@dataclass(frozen=True, slots=True)
class Phase:
    """What is published before the workers are waited for: labels follow the events."""

    events: Sequence[Mapping[str, Any]]
    labels: Sequence[Mapping[str, Any]] = ()


def undisturbed(deployment: Deployment, phases: Sequence[Phase]) -> dict[tuple[str, int, int], dict[str, Any]]:
    """Scores by origin of one worker in this process, over in-memory ports, that nothing ever disturbs."""
    settings, topics = deployment.settings, deployment.topics
    client = MemoryKafka(MemoryBroker(), settings.kafka)
    admin = client.admin()
    for topic in (topics.transactions, topics.labels, topics.scores, topics.alerts, topics.dead_letters):
        admin.create_topic(topic, partitions=deployment.partitions, replication_factor=1, config={})
    store = MemoryStore(settings.state_namespace, deployment.domain.spec_id)
    metrics = Metrics(CollectorRegistry())
    worker = app.build_worker(settings, deployment.domain, client, store, metrics, scorer=None, clock=SystemClock())
    worker.start()
    producer, reader = client.plain_producer(), client.reader()
    inputs = (topics.transactions, topics.labels)
    partitions = [TopicPartition(topic, number) for topic in inputs for number in range(deployment.partitions)]
    for phase in phases:
        for topic, contents in zip(inputs, (phase.events, phase.labels), strict=True):
            for message in messages_of(contents):
                producer.produce(topic, message.value, key=message.key)
            producer.flush()
            _run_until_done(worker, client, settings.kafka.group, {tp: reader.end_offset(tp) for tp in partitions})
    worker.finish()
    reader.assign({TopicPartition(topics.scores, number): 0 for number in range(deployment.partitions)})
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    while records := [record for batch in reader.poll(10_000, 10).values() for record in batch]:
        outputs = [Output(record, json.loads(record.value or b"")) for record in records]
        found |= {output.origin: output.content for output in outputs}
    return found


def _run_until_done(worker: Any, client: KafkaClient, group: str, ends: Mapping[TopicPartition, int]) -> None:
    admin = client.admin()
    for _ in range(10_000):
        committed = admin.last_committed(group, list(ends))
        if all(end == 0 or (tp in committed and committed[tp].offset == end) for tp, end in ends.items()):
            return
        worker.run_once()
    raise AssertionError("the worker in memory does not come to an end")


def lasting(content: Mapping[str, Any]) -> dict[str, Any]:
    """A score without what tells when it was made."""
    return {name: value for name, value in content.items() if name not in _ENVELOPE}
