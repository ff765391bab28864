"""One partition's log through one worker that nothing disturbs: over in-memory ports, in virtual time.

The very same records at the same offsets, its labels folded where the disturbed run's records say that they
were. It gives what the scores must be to 1e-6, and the rows bit for bit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from stream import app
from stream.clock import ManualClock
from stream.config import Settings
from stream.engine.worker import Worker
from stream.kafka.memory import MemoryKafka, broker, client
from stream.kafka.port import TopicPartition
from stream.metrics import Metrics
from stream.state.memory import MemoryServer, MemoryStore
from tests.checker import checks
from tests.crash.cluster import VirtualBroker, VirtualTime
from tests.crash.undisturbed import plan_of

_LIMIT = 1_000


@dataclass(slots=True)
class Undisturbed:
    """What it published and what it flushed."""

    scores: checks.Outputs
    alerts: checks.Outputs
    rows: dict[bytes, bytes]
    done: tuple[int, int]


def run(settings: Settings, contents: checks.Contents, partition: int, partitions: int) -> Undisturbed:
    """Scores the partition's input. Blocks: about a third of a millisecond per event."""
    VirtualTime.clock = clock = ManualClock(1_700_000_000_000)
    broker.time = client.time = VirtualTime()
    cluster, server = VirtualBroker(clock), MemoryServer()
    topics = settings.topics
    for topic in (topics.transactions, topics.labels, topics.scores, topics.alerts, topics.dead_letters):
        cluster.create_topic(topic, partitions=partitions)
    domain = app.load_domain(settings)
    store = MemoryStore(
        settings.state_namespace, domain.spec_id, server, settings.redis.key_secret.get_secret_value().encode()
    )
    bundle = settings.scoring.bundle
    scorer = app.load_scorer(bundle, domain, settings.scoring) if bundle is not None else None
    worker = app.build_worker(
        settings, domain, MemoryKafka(cluster, settings.kafka), store, Metrics(CollectorRegistry()),
        scorer=scorer, clock=clock,
    )  # fmt: skip
    worker.start()
    _play(cluster, clock, worker, settings, contents, partition)
    worker.finish()
    head = store.load_head(partition)
    checkpoint = (head.checkpoint if head is not None else None) or (0, 0)
    return Undisturbed(
        _outputs(cluster, topics.scores, partition), _outputs(cluster, topics.alerts, partition),
        server.rows, (checkpoint[0], checkpoint[1]),
    )  # fmt: skip


def _play(
    cluster: VirtualBroker,
    clock: ManualClock,
    worker: Worker,
    settings: Settings,
    contents: checks.Contents,
    partition: int,
) -> None:
    """Publishes up to where labels were folded, waits until that is done, then the labels, and so on."""
    topics = settings.topics
    admin = MemoryKafka(cluster).admin()
    pending = {
        topics.transactions: iter([*contents.transactions[partition], None]),
        topics.labels: iter([*contents.labels[partition], None]),
    }
    waiting = {topic: next(records) for topic, records in pending.items()}
    for topic, end in plan_of(contents, partition, (topics.transactions, topics.labels)):
        where = TopicPartition(topic, partition)
        last = -1
        while (record := waiting[topic]) is not None and record.offset < end:
            log = cluster.log(where)
            log._slots.extend([None] * (record.offset - log.next_offset))
            cluster.append(
                topic, record.value, key=record.key, headers=record.headers, partition=partition,
                timestamp_ms=record.timestamp,
            )  # fmt: skip
            last, waiting[topic] = record.offset, next(pending[topic])
        for _ in range(_LIMIT if last >= 0 else 0):
            worker.run_once()
            clock.advance_ms(20)
            found = admin.last_committed(settings.kafka.group, [where]).get(where)
            if found is not None and found.offset > last:
                break
        else:
            if last >= 0:
                raise AssertionError(f"the undisturbed run of partition {partition} does not get past {last}")


def _outputs(cluster: VirtualBroker, topic: str, partition: int) -> checks.Outputs:
    outputs = checks.Outputs()
    records, _ = cluster.log(TopicPartition(topic, partition)).read(0, 10**9)
    for record in records:
        content = json.loads(record.value or b"")
        origin = content["origin"]
        outputs.ordered.append(((origin["topic"], origin["partition"], origin["offset"]), content))
    return outputs
