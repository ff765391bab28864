"""The doctor against real Apache Kafka and a real Redis."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

import pytest
from pydantic import SecretStr

from stream.config import RedisSettings, Settings, load_settings
from stream.doctor import examine
from stream.kafka.kafka_python import KafkaPythonClient
from stream.kafka.port import CommittedOffset, TopicPartition
from stream.stack import ApacheKafka, RedisServer
from stream.state.redis import RedisStore
from stream.state.store import Checkpoint, Finding
from tests.contract.kafka_clusters import joined

pytestmark = [pytest.mark.kafka, pytest.mark.redis]


@pytest.fixture
def settings(apache_kafka: ApacheKafka, redis_server: RedisServer, unique: str) -> Settings:
    overrides = {f"topics.{field}": f"{unique}-{field}" for field in Settings().topics.model_dump()}
    overrides |= {"kafka.group": unique, "kafka.bootstrap_servers": apache_kafka.bootstrap}
    return load_settings(None, {}, overrides | {"redis.url": redis_server.url}).settings


@pytest.fixture
def kafka(settings: Settings) -> KafkaPythonClient:
    return KafkaPythonClient(settings.kafka)


@pytest.fixture
def store(settings: Settings) -> Iterator[RedisStore]:
    made = RedisStore(settings.redis, settings.state_namespace, "0" * 16)
    yield made
    made.close()


def create(kafka: KafkaPythonClient, settings: Settings, partitions: int = 2, **configs: dict[str, str]) -> None:
    admin = kafka.admin()
    for field, name in settings.topics.model_dump().items():
        admin.create_topic(name, partitions=partitions, replication_factor=1, config=configs.get(field, {}))
    admin.close()


def level(findings: Sequence[Finding], subject: str) -> str:
    (found,) = [finding.level for finding in findings if finding.subject == subject]
    return found


def test_a_fresh_cluster_and_then_its_topics(kafka: KafkaPythonClient, settings: Settings, store: RedisStore) -> None:
    findings = examine(settings, kafka, store)
    topics = settings.topics
    assert level(findings, "kafka brokers") == "ok"
    assert level(findings, f"topic {topics.transactions}") == "error"
    keep = {"retention.ms": "-1"}
    create(kafka, settings, transactions=keep, labels={"retention.ms": "1000"}, alerts={"cleanup.policy": "compact"})
    findings = examine(settings, kafka, store)
    assert [finding for finding in findings if finding.level == "error"] == []
    assert level(findings, f"topic {topics.transactions}") == "ok"
    assert level(findings, "co-partitioning") == "ok"
    assert level(findings, "replication") == "warning"
    assert level(findings, f"retention {topics.transactions}") == "ok"
    assert level(findings, f"retention {topics.labels}") == "warning"
    assert level(findings, f"retention {topics.alerts}") == "warning"
    assert level(findings, f"message size {topics.dead_letters}") == "warning"
    assert level(findings, "kafka transactions") == "ok"
    assert level(findings, "kafka group") == "ok"
    assert level(findings, "redis") == "ok"
    assert level(findings, "redis eviction") == "ok"
    assert level(findings, "state") == "ok"


def test_committed_offsets_beside_checkpoints(kafka: KafkaPythonClient, settings: Settings, store: RedisStore) -> None:
    create(kafka, settings)
    topics = [settings.topics.transactions, settings.topics.labels]
    plain = kafka.plain_producer()
    for number in range(2):
        plain.produce(topics[0], b"{}", partition=number)
    plain.flush()
    plain.close()
    consumer, _ = joined(kafka, topics)
    producer = kafka.producer(f"{settings.kafka.group}-worker")
    producer.init_transactions()
    producer.begin()
    offsets = {TopicPartition(topics[0], number): CommittedOffset(1, "") for number in range(2)}
    producer.send_offsets(offsets, consumer.group_metadata())
    producer.commit()
    for number in (0, 1):
        store.write_checkpoints({number: Checkpoint(number + 1, 0)}, {number: store.claim(number, "doctor-w0", 0)})
    found = [
        (finding.level, finding.message) for finding in examine(settings, kafka, store) if finding.subject == "state"
    ]
    assert [level for level, _ in found] == ["error", "ok"]
    assert "[1]" in found[0][1]
    assert "[0]" in found[1][1]
    # The worker that runs meanwhile is not disturbed: it can commit again.
    producer.begin()
    producer.send_offsets(offsets, consumer.group_metadata())
    producer.commit()
    producer.close()
    consumer.close()


def test_nobody_there_is_two_findings_with_remedies() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{closed.getsockname()[1]}"
        overrides = {"kafka.bootstrap_servers": nowhere, "kafka.request_timeout_ms": 1_000}
        settings = load_settings(None, {}, overrides).settings
        store = RedisStore(RedisSettings(url=SecretStr(f"redis://{nowhere}")), "doctor", "0" * 16)
        findings = examine(settings, KafkaPythonClient(settings.kafka), store)
    assert level(findings, "kafka") == level(findings, "redis") == "error"
    assert all(finding.remedy for finding in findings)
