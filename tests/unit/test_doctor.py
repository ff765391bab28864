"""Every finding of the doctor, made to appear and to go away, over the in-memory ports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from stream.config import Settings, load_settings
from stream.doctor import examine
from stream.errors import BundleRefused, NotAuthorisedError, RiskstreamError, UnavailableError
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.kafka.memory.client import MemoryAdmin, MemoryProducer
from stream.kafka.partitioner import partition_for
from stream.kafka.port import CommittedOffset, TopicPartition
from stream.state.memory import MemoryServer, MemoryStore
from stream.state.store import Checkpoint, Finding

TOPICS = ("transactions", "labels", "risk-scores", "alerts", "transactions.dlq")
SOUND = {"min.insync.replicas": "2", "retention.ms": "-1", "max.message.bytes": "1000000"}
LARGER = SOUND | {"max.message.bytes": "1100000"}


class Cluster(MemoryKafka):
    """The in-memory cluster, with as many brokers as the test says and with its ways to fail."""

    def __init__(self) -> None:
        super().__init__(MemoryBroker())
        self.brokers = [1, 2, 3]
        self.offsets: dict[TopicPartition, CommittedOffset] = {}
        self.admin_error: RiskstreamError | None = None
        self.producer_error: RiskstreamError | None = None
        self.transactional_ids: list[str] = []

    def admin(self) -> MemoryAdmin:
        if self.admin_error is not None:
            raise self.admin_error
        return _Admin(self)

    def producer(self, transactional_id: str) -> MemoryProducer:
        self.transactional_ids.append(transactional_id)
        if self.producer_error is not None:
            raise self.producer_error
        return super().producer(transactional_id)

    def create(self, partitions: int = 2, replicas: int = 3, **configs: Mapping[str, str]) -> None:
        for name in TOPICS:
            default = LARGER if name == "transactions.dlq" else SOUND
            self.broker.create_topic(
                name, partitions=partitions, replication_factor=replicas, config=configs.get(name, default)
            )

    def commit(self, partition: int, transactions: int, labels: int = 0) -> None:
        self.offsets[TopicPartition("transactions", partition)] = CommittedOffset(transactions, "")
        self.offsets[TopicPartition("labels", partition)] = CommittedOffset(labels, "")


class _Admin(MemoryAdmin):
    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster.broker)
        self._cluster = cluster

    def broker_ids(self) -> Sequence[int]:
        return self._cluster.brokers

    def last_committed(
        self, group: str, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, CommittedOffset]:
        return {
            partition: self._cluster.offsets[partition]
            for partition in partitions
            if partition in self._cluster.offsets
        }


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def settings(**overrides: Any) -> Settings:
    return load_settings(None, {}, {name.replace("__", "."): value for name, value in overrides.items()}).settings


def of(findings: Sequence[Finding], subject: str) -> list[tuple[str, str]]:
    return [(finding.level, finding.message) for finding in findings if finding.subject == subject]


def level(findings: Sequence[Finding], subject: str) -> str:
    ((found, _),) = of(findings, subject)
    return found


def test_a_sound_cluster_has_only_good_findings(cluster: Cluster, store: MemoryStore, tmp_path: Path) -> None:
    cluster.create()
    findings = examine(settings(scoring__bundle=tmp_path), cluster, store, lambda folder: f"bundle at {folder.name}")
    assert {finding.level for finding in findings} == {"ok"}
    assert of(findings, "bundle") == [("ok", f"bundle at {tmp_path.name}")]
    assert ("ok", "both inputs have 2 partitions") in of(findings, "co-partitioning")


def test_every_finding_that_is_not_good_has_a_remedy(cluster: Cluster, store: MemoryStore) -> None:
    cluster.brokers = [1]
    cluster.broker.create_topic("labels", partitions=3, config={"cleanup.policy": "compact"})
    cluster.broker.create_topic("transactions", partitions=2, config={"retention.ms": "1"})
    findings = examine(settings(), cluster, store)
    bad = [finding for finding in findings if finding.level != "ok"]
    assert len(bad) >= 6
    assert all(finding.remedy and finding.message for finding in bad)
    assert {finding.level for finding in findings} <= {"ok", "warning", "error"}


def test_nothing_is_written_and_no_worker_is_fenced(cluster: Cluster, store: MemoryStore) -> None:
    cluster.create()
    cluster.broker.append("transactions", b"{}", key=b"a")
    examine(settings(kafka__group="fraud", kafka__worker_id="w-1"), cluster, store)
    reader = cluster.reader()
    ends = [reader.end_offset(TopicPartition(name, number)) for name in TOPICS for number in range(2)]
    assert sum(ends) == 1
    assert cluster.transactional_ids == ["fraud-w-1-doctor"]
    assert store.server == MemoryServer(lock=store.server.lock)


def test_what_is_not_given_is_not_examined() -> None:
    assert [finding.subject for finding in examine(settings(), None, None)] == ["bundle"]


def test_a_missing_topic_is_named_with_its_setting(cluster: Cluster) -> None:
    findings = examine(settings(topics__alerts="my-alerts"), cluster, None)
    assert of(findings, "topic my-alerts") == [("error", "does not exist (topics.alerts)")]
    assert len([finding for finding in findings if finding.level == "error"]) == 5
    assert of(findings, "co-partitioning") == []


def test_inputs_of_unequal_partition_counts_are_an_error(cluster: Cluster) -> None:
    cluster.broker.create_topic("labels", partitions=3, replication_factor=3, config=SOUND)
    cluster.create(partitions=4)
    ((found, message),) = of(examine(settings(), cluster, None), "co-partitioning")
    assert found == "error"
    assert "transactions has 4 partitions and labels 3" in message


@pytest.mark.parametrize(
    ("brokers", "replicas", "in_sync", "expected"),
    [
        (1, 1, "1", "a single broker"),
        (3, 3, "2", None),
        (3, 1, "1", "has 1 replicas"),
        (3, 2, "1", "has 2 replicas"),
        (3, 3, "1", "acknowledges with one replica"),
        (3, 3, "3", "stops when one broker is away"),
        (2, 2, "2", "stops when one broker is away"),
    ],
)
def test_weak_replication_is_a_warning(
    cluster: Cluster, brokers: int, replicas: int, in_sync: str, expected: str | None
) -> None:
    cluster.brokers = list(range(brokers))
    config = SOUND | {"min.insync.replicas": in_sync}
    cluster.create(replicas=replicas, **dict.fromkeys(TOPICS, config))
    ((found, message),) = of(examine(settings(), cluster, None), "replication")
    assert found == ("ok" if expected is None else "warning")
    assert (expected or "survives") in message


@pytest.mark.parametrize(
    ("topic", "config", "expected"),
    [
        ("transactions", {"cleanup.policy": "compact"}, "error"),
        ("labels", {"cleanup.policy": "compact,delete"}, "error"),
        ("alerts", {"cleanup.policy": "compact"}, "warning"),
        ("transactions", {"retention.ms": str(30 * 86_400_000 - 1)}, "warning"),
        ("transactions", {"retention.ms": str(30 * 86_400_000)}, "ok"),
        ("transactions", {"retention.bytes": "1000000"}, "warning"),
        ("labels", {"retention.ms": "1000"}, "warning"),
    ],
)
def test_retention_is_held_against_the_horizon(
    cluster: Cluster, topic: str, config: Mapping[str, str], expected: str
) -> None:
    cluster.create(**{topic: SOUND | dict(config)})
    assert level(examine(settings(), cluster, None), f"retention {topic}") == expected


def test_a_shorter_horizon_needs_less_retention(cluster: Cluster) -> None:
    cluster.create(transactions=SOUND | {"retention.ms": str(7 * 86_400_000)})
    assert level(examine(settings(state__horizon_days=7), cluster, None), "retention transactions") == "ok"
    assert level(examine(settings(state__horizon_days=8), cluster, None), "retention transactions") == "warning"


def test_outputs_must_take_what_the_inputs_may_hold(cluster: Cluster) -> None:
    cluster.create(**{"transactions.dlq": SOUND, "risk-scores": SOUND | {"max.message.bytes": "200000"}})
    findings = examine(settings(), cluster, None)
    assert "1065536" in of(findings, "message size transactions.dlq")[0][1]
    assert level(findings, "message size risk-scores") == "warning"
    assert of(findings, "message size alerts") == []
    small = examine(settings(batch__max_message_bytes=50_000), cluster, None)
    assert of(small, "message size risk-scores") == []


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (UnavailableError("no coordinator"), "__transaction_state"),
        (NotAuthorisedError("TransactionalId denied"), "riskstream rights"),
    ],
)
def test_transactions_that_are_refused_hide_nothing_else(cluster: Cluster, error: RiskstreamError, remedy: str) -> None:
    cluster.create()
    cluster.producer_error = error
    findings = examine(settings(), cluster, None)
    (refused,) = [finding for finding in findings if finding.subject == "kafka transactions"]
    assert (refused.level, refused.message) == ("error", str(error))
    assert remedy in refused.remedy
    assert level(findings, "kafka group") == "ok"


def test_kafka_away_does_not_hide_redis_and_the_other_way_round(cluster: Cluster, store: MemoryStore) -> None:
    cluster.create()
    cluster.admin_error = UnavailableError("no broker answers")
    findings = examine(settings(), cluster, store)
    assert of(findings, "kafka") == [("error", "no broker answers")]
    assert level(findings, "state store") == "ok"
    cluster.admin_error, store.server.available = None, False
    cluster.commit(0, 5)
    findings = examine(settings(), cluster, store)
    assert level(findings, "kafka brokers") == "ok"
    assert level(findings, "state store") == "error"
    assert level(findings, "state") == "error"


def test_the_state_is_held_against_the_offsets_and_the_log(cluster: Cluster, store: MemoryStore) -> None:
    cluster.create(partitions=8)
    assert "first start" in of(examine(settings(), cluster, store), "state")[0][1]
    for number in range(8):
        cluster.commit(number, transactions=10 if number < 7 else 1, labels=3)
    for number, checkpoint in enumerate([(10, 3), (4, 3), None, (11, 3), (1, 3), (10, 4), (10, 2), (1, 3)]):
        if checkpoint is not None:
            store.write_checkpoints(
                {number: Checkpoint(*checkpoint)}, {number: store.claim(number, "riskstream-w0", 0)}
            )
    for number in (4, 7):
        for _ in range(3):
            cluster.broker.append("transactions", b"{}", partition=number)
        cluster.broker.delete_before(TopicPartition("transactions", number), 2)
    found = of(examine(settings(), cluster, store), "state")
    expected = [
        ("error", "partitions [3, 5]: the state is ahead"),
        ("error", "partitions [4, 7]: the log no longer holds"),
        ("warning", "partitions [2]: no checkpoint; their state will be rebuilt"),
        ("ok", "partitions [1, 6]: a start replays"),
        ("ok", "partitions [0]: up to the committed offset"),
    ]
    assert len(found) == len(expected)
    for (level_, message), (expected_level, start) in zip(found, expected, strict=True):
        assert level_ == expected_level
        assert message.startswith(start)
    lenient = settings(state__on_truncated_log="continue", state__on_missing_checkpoint="cold")
    found = of(examine(lenient, cluster, store), "state")
    assert found[1][0] == "warning"
    assert "begun cold" in found[2][1]


def test_bundle_policy_and_rates(tmp_path: Path) -> None:
    assert level(examine(settings(), None, None), "bundle") == "warning"
    file = tmp_path / "file"
    file.write_text("")
    for wrong in (file, tmp_path / "absent"):
        findings = examine(settings(scoring__bundle=wrong), None, None, str)
        assert level(findings, "bundle") == "error"

    def refuse(folder: Path) -> str:
        raise BundleRefused("model.ts does not have the hash of the manifest")

    findings = examine(settings(scoring__bundle=tmp_path), None, None, refuse)
    assert of(findings, "bundle") == [("error", "model.ts does not have the hash of the manifest")]
    findings = examine(settings(scoring__policy=tmp_path / "no.yaml", scoring__rates=file), None, None)
    assert level(findings, "scoring.policy") == "error"
    assert of(findings, "scoring.rates") == []


@pytest.mark.parametrize(
    ("key", "partition", "level", "words"),
    [
        (b"a1", None, "ok", "keyed by account"),
        (b"other", None, "warning", "not keyed by their account"),
        (None, None, "warning", "not keyed by their account"),
        (b"a1", 1 - partition_for(b"a1", 2), "warning", "default partitioner"),
    ],
)
def test_keys_of_the_newest_events(
    cluster: Cluster, key: bytes | None, partition: int | None, level: str, words: str
) -> None:
    cluster.create()
    for value in (b'{"account_id": "a1"}', b"no event", b'{"account_id": 7}', b"[1]", None):
        where = partition_for(b"a1", 2) if key is None and partition is None else partition
        cluster.broker.append("transactions", value, key=key, partition=where)
    (found,) = [each for each in examine(Settings(), cluster, None) if each.subject == "keys"]
    assert found.level == level
    assert words in found.message
    assert "a1" not in found.message + found.remedy


def test_without_events_nothing_is_said_of_keys(cluster: Cluster) -> None:
    cluster.create()
    assert [each for each in examine(Settings(), cluster, None) if each.subject == "keys"] == []
