"""What the Kafka contract suite runs against: one small harness per kind of cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

from kafka import TopicPartition as VendorPartition
from kafka.admin import KafkaAdminClient, MemberToRemove

from stream.config import KafkaSettings
from stream.kafka.connect import client_of
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.kafka.port import (
    Admin,
    Consumer,
    KafkaClient,
    PlainProducer,
    Producer,
    Reader,
    Record,
    TopicPartition,
)

PATIENCE_S = 20.0
ClosableT = TypeVar("ClosableT", Producer, PlainProducer, Reader, Admin)


class _Closing:
    """A client that remembers what it has made."""

    def __init__(self, client: KafkaClient) -> None:
        self._client = client
        self._closers: list[Callable[[], None]] = []

    def consumer(self) -> Consumer:
        made = self._client.consumer()
        self._closers.append(lambda: made.close(leave_group=False))
        return made

    def producer(self, transactional_id: str) -> Producer:
        return self._remember(self._client.producer(transactional_id))

    def plain_producer(self) -> PlainProducer:
        return self._remember(self._client.plain_producer())

    def reader(self) -> Reader:
        return self._remember(self._client.reader())

    def admin(self) -> Admin:
        return self._remember(self._client.admin())

    def _remember(self, made: ClosableT) -> ClosableT:
        self._closers.append(made.close)
        return made

    def close(self) -> None:
        while self._closers:
            self._closers.pop()()


class Cluster(Protocol):
    """A cluster with names of its own, so that tests may share it."""

    name: str

    def client(self, worker_id: str = "worker-0", **settings: Any) -> KafkaClient: ...
    def create_topic(self, partitions: int = 1, suffix: str = "") -> str: ...
    def delete_before(self, partition: TopicPartition, offset: int) -> None:
        """What retention does."""
        ...

    def expel(self, worker_id: str) -> None:
        """What a session that times out does."""
        ...


class _Named:
    def __init__(self, name: str) -> None:
        self.name = name
        self._clients: list[_Closing] = []

    def close(self) -> None:
        """Closes what the test has left open."""
        for client in self._clients:
            client.close()

    def _closing(self, client: KafkaClient) -> KafkaClient:
        self._clients.append(_Closing(client))
        return self._clients[-1]

    def settings(self, worker_id: str, **settings: Any) -> KafkaSettings:
        values = {"group": self.name, "heartbeat_interval_ms": 200, "session_timeout_ms": 6_000, **settings}
        return KafkaSettings(worker_id=worker_id, **values)


class MemoryCluster(_Named):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.broker = MemoryBroker()

    def client(self, worker_id: str = "worker-0", **settings: Any) -> KafkaClient:
        return self._closing(MemoryKafka(self.broker, self.settings(worker_id, **settings)))

    def create_topic(self, partitions: int = 1, suffix: str = "") -> str:
        self.broker.create_topic(self.name + suffix, partitions=partitions)
        return self.name + suffix

    def delete_before(self, partition: TopicPartition, offset: int) -> None:
        self.broker.delete_before(partition, offset)

    def expel(self, worker_id: str) -> None:
        self.broker.expel(self.name, worker_id)


class RealCluster(_Named):
    def __init__(self, name: str, bootstrap: str, kind: Literal["kafka-python", "confluent"] = "kafka-python") -> None:
        super().__init__(name)
        self._bootstrap, self._kind = bootstrap, kind

    def client(self, worker_id: str = "worker-0", **settings: Any) -> KafkaClient:
        values = {"bootstrap_servers": self._bootstrap, "client": self._kind, **settings}
        return self._closing(client_of(self.settings(worker_id, **values)))

    def create_topic(self, partitions: int = 1, suffix: str = "") -> str:
        admin = self.client().admin()
        admin.create_topic(self.name + suffix, partitions=partitions, replication_factor=1, config={})
        admin.close()
        return self.name + suffix

    def delete_before(self, partition: TopicPartition, offset: int) -> None:
        with KafkaAdminClient(bootstrap_servers=self._bootstrap) as admin:
            admin.delete_records({VendorPartition(*partition): offset})

    def expel(self, worker_id: str) -> None:
        with KafkaAdminClient(bootstrap_servers=self._bootstrap) as admin:
            admin.remove_group_members(self.name, [MemberToRemove(group_instance_id=worker_id)])


class Recorder:
    """A rebalance listener that writes down what it is told, and on which thread."""

    def __init__(self) -> None:
        self.events: list[tuple[str, frozenset[TopicPartition]]] = []
        self.threads: set[int] = set()
        self.when_revoked: Callable[[], None] | None = None
        self.when_assigned: Callable[[Sequence[TopicPartition]], None] | None = None

    def _note(self, kind: str, partitions: Sequence[TopicPartition]) -> None:
        self.events.append((kind, frozenset(partitions)))
        self.threads.add(threading.get_ident())

    def on_assigned(self, partitions: Sequence[TopicPartition]) -> None:
        self._note("assigned", partitions)
        if self.when_assigned is not None:
            self.when_assigned(partitions)

    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self._note("revoked", partitions)
        if self.when_revoked is not None:
            self.when_revoked()

    def on_lost(self, partitions: Sequence[TopicPartition]) -> None:
        self._note("lost", partitions)

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


def until(done: Callable[[], bool], *polled: Consumer) -> None:
    """Polls the consumers in turn, dropping nothing, until the condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, "the condition was not met in time"
        for consumer in polled:
            assert not consumer.poll(1, 20), "no record was expected"
        if not polled:
            time.sleep(0.01)


def read(source: Consumer | Reader, count: int, max_records: int = 500) -> list[Record]:
    """Polls until so many records have come; fails when more come, or too few in time."""
    deadline = time.monotonic() + PATIENCE_S
    records: list[Record] = []
    while len(records) < count:
        assert time.monotonic() < deadline, f"only {len(records)} of {count} records came in time"
        batches: Mapping[TopicPartition, Sequence[Record]] = source.poll(max_records, 100)
        for batch in batches.values():
            records.extend(batch)
    assert len(records) == count
    return records


def values(records: Sequence[Record]) -> list[bytes | None]:
    return [record.value for record in records]


def joined(client: KafkaClient, topics: Sequence[str]) -> tuple[Consumer, Recorder]:
    """A consumer that has got its share of the topics, and no record yet."""
    recorder = Recorder()
    consumer = client.consumer()
    # The poll that brings the share may bring records too.
    recorder.when_assigned = consumer.pause
    consumer.subscribe(topics, recorder)
    until(lambda: "assigned" in recorder.kinds(), consumer)
    recorder.when_assigned = None
    consumer.resume(consumer.assignment())
    return consumer, recorder


def write(client: KafkaClient, topic: str, payloads: Sequence[bytes], partition: int | None = None) -> None:
    """Records outside any transaction."""
    producer: PlainProducer = client.plain_producer()
    for payload in payloads:
        producer.produce(topic, payload, key=payload[:40], partition=partition)
    producer.flush()
    producer.close()


def begun(client: KafkaClient, transactional_id: str) -> Producer:
    """A producer inside a transaction."""
    producer = client.producer(transactional_id)
    producer.init_transactions()
    producer.begin()
    return producer
