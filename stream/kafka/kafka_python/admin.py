"""Questions and commands outside the data path, with kafka-python's admin client."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import kafka.errors as vendor
from kafka import KafkaProducer
from kafka import TopicPartition as VendorPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, MemberToRemove, TransactionState

from stream.config import KafkaSettings
from stream.errors import FencedError, NotAuthorisedError, RiskstreamError
from stream.kafka.kafka_python.connection import admin_options, common_options
from stream.kafka.kafka_python.errors import translated, translating
from stream.kafka.port import CommittedOffset, TopicDescription, TopicPartition

_ASK_AGAIN_S = 0.1
_CLOSE_TIMEOUT_S = 5.0


class KafkaPythonAdmin:
    """See `stream.kafka.port.Admin`."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        with translating("connecting to Kafka"):
            self._vendor = KafkaAdminClient(**admin_options(settings))

    def partition_counts(self, names: Sequence[str]) -> Mapping[str, int]:
        """Partitions of each topic that exists, by name."""
        return {name: len(partitions) for name, partitions in self._partitions(names).items()}

    def describe_topics(self, names: Sequence[str]) -> Mapping[str, TopicDescription]:
        found = self._partitions(names)
        if not found:
            return {}
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in found]
        with translating("describing topics"):
            configs = self._vendor.describe_configs(resources, config_filter="all")["topic"]
        # The vendor drops the error of a single topic. A topic has dozens of entries, or may not be looked at.
        hidden = sorted(name for name in found if not configs.get(name))
        if hidden and self._settings.security_protocol != "PLAINTEXT":
            raise NotAuthorisedError(
                f"describing topics: the user of kafka.sasl_username lacks the right DescribeConfigs on {hidden[0]}; "
                f"`riskstream rights --role operator` lists what is needed"
            )
        return {
            name: TopicDescription(
                name=name,
                partitions=len(replicas),
                replication_factor=min(replicas),
                config={key: str(entry["value"]) for key, entry in configs.get(name, {}).items()},
            )
            for name, replicas in found.items()
        }

    def create_topic(self, name: str, *, partitions: int, replication_factor: int, config: Mapping[str, str]) -> bool:
        topic = {"num_partitions": partitions, "replication_factor": replication_factor, "configs": dict(config)}
        try:
            with translating(f"creating topic {name}"):
                self._vendor.create_topics({name: topic}, wait_for_metadata=True)
        except RiskstreamError as error:
            if isinstance(error.__cause__, vendor.TopicAlreadyExistsError):
                return False
            raise
        return True

    def broker_ids(self) -> Sequence[int]:
        # The vendor's describe_cluster fails on brokers before Kafka 3.7.
        with translating("listing brokers"):
            metadata = self._vendor._manager.run(self._vendor._get_cluster_metadata, [])
        return sorted(broker["node_id"] for broker in metadata["brokers"])

    def last_committed(
        self, group: str, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, CommittedOffset]:
        """An OffsetFetch without `require_stable`: the offsets before any pending transaction."""
        wanted = [VendorPartition(*partition) for partition in partitions]
        with translating(f"reading the offsets of group {group}"):
            answer = self._patiently(lambda: self._vendor.list_group_offsets({group: wanted})[group])
        # A partition without a committed offset is answered with -1.
        return {
            TopicPartition(*partition): CommittedOffset(entry.offset, clean_metadata(entry.metadata))
            for partition, entry in answer.items()
            if entry.offset >= 0
        }

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """Asks again while the answer is 'not now': a new cluster has no coordinator for a second or so."""
        deadline = time.monotonic() + self._settings.request_timeout_ms / 1000
        while True:
            try:
                return ask()
            except vendor.RetriableError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_ASK_AGAIN_S)

    def is_abandoned(self, transactional_id: str, group: str, worker_id: str) -> bool:
        with translating(f"looking for the transaction of {transactional_id}"):
            members = self._patiently(lambda: self._vendor.describe_groups([group])[group]["members"])
            if any(member["group_instance_id"] == worker_id for member in members):
                return False
            try:
                described = self._patiently(lambda: self._vendor.describe_transactions([transactional_id]))
            except vendor.TransactionalIdNotFoundError:
                return False
            except vendor.UnsupportedVersionError:
                return True
        return bool(described[transactional_id].state == TransactionState.ONGOING)

    def fence(self, transactional_id: str) -> None:
        doing = f"fencing the transactional id {transactional_id}"
        with translating(doing):
            producer = KafkaProducer(
                **common_options(self._settings),
                transactional_id=transactional_id,
                transaction_timeout_ms=self._settings.transaction_timeout_ms,
                max_block_ms=self._settings.request_timeout_ms,
            )
        try:
            producer.init_transactions()
        except vendor.KafkaError as error:
            raise translated(error, doing) from error
        finally:
            producer.close(timeout=_CLOSE_TIMEOUT_S)

    def close(self) -> None:
        self._vendor.close()

    def _partitions(self, names: Sequence[str]) -> dict[str, list[int]]:
        """The number of replicas of each partition of each topic that exists."""
        if not names:
            return {}
        with translating("describing topics"):
            answers = self._vendor.describe_topics(list(names))
        found = {}
        for answer in answers:
            error = vendor.for_code(answer["error_code"])
            if error is vendor.NoError:
                found[answer["name"]] = [len(partition["replica_nodes"]) for partition in answer["partitions"]]
            elif not issubclass(error, (vendor.UnknownTopicOrPartitionError, vendor.LeaderNotAvailableError)):
                raise translated(error(), f"describing topic {answer['name']}")
        return found


def clean_metadata(text: str | None) -> str:
    """An offset's metadata as it was meant: confluent-kafka 2.12 commits the NUL that ends a C string along."""
    return (text or "").rstrip("\0")


def remove_static_member(settings: KafkaSettings) -> None:
    """Takes this worker's place in the group away at once. Blocks for a request or two."""
    with translating("leaving the group"):
        admin = KafkaAdminClient(**admin_options(settings))
        try:
            admin.remove_group_members(settings.group, [MemberToRemove(group_instance_id=settings.worker_id)])
        finally:
            admin.close()


def check_not_replaced(settings: KafkaSettings, group_id: str, instance_id: str, member_id: str) -> None:
    """FencedError if another member has joined the group as `instance_id`. Blocks for a request or two."""
    with translating("looking for this worker in its group"):
        admin = KafkaAdminClient(**admin_options(settings))
        try:
            members = admin.describe_groups([group_id])[group_id]["members"]
        finally:
            admin.close()
    for member in members:
        if member["group_instance_id"] == instance_id and member["member_id"] != member_id:
            raise FencedError(f"another consumer has joined the group with this kafka.worker_id, {instance_id}")
