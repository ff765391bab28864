"""The models topic: compacted, one partition, so that every worker reads the same deployments in one order."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from stream.config import Settings
from stream.errors import TopicError
from stream.kafka.port import Admin, KafkaClient, Record, TopicPartition
from stream.rollout.records import Deployment, parse

_POLL_MS = 200


def create(admin: Admin, settings: Settings) -> bool:
    """Makes the models topic if there is none, with as many copies as the transactions have. Blocks. TopicError."""
    name = settings.topics.models
    found = admin.describe_topics([name, settings.topics.transactions])
    if name in found:
        if found[name].partitions != 1 or found[name].config.get("cleanup.policy") != "compact":
            raise TopicError(
                f"topic {name} must have one partition and cleanup.policy=compact: delete it, or name another"
            )
        return False
    transactions = found.get(settings.topics.transactions)
    if transactions is None:
        raise TopicError(f"no topic {settings.topics.transactions}: make it with `riskstream topics create`")
    copies = transactions.replication_factor
    config = {
        "cleanup.policy": "compact",
        "min.insync.replicas": "2" if copies >= 3 else "1",
        "unclean.leader.election.enable": "false",
    }
    return admin.create_topic(name, partitions=1, replication_factor=copies, config=config)


class ModelsTopic:
    """Reads deployments in the order in which they were given. Use it from one thread."""

    def __init__(self, client: KafkaClient, topic: str) -> None:
        self._reader = client.reader()
        self._partition = TopicPartition(topic, 0)
        self._next = 0
        """The first offset that nobody was told of."""
        self._assigned = False

    def exists(self, admin: Admin) -> bool:
        return self._partition.topic in admin.describe_topics([self._partition.topic])

    def read(self) -> list[Deployment | str]:
        """What came since the last call, up to the topic's end; the first time all that is kept.

        A text stands for a record that is no deployment: what is wrong with it. Blocks. UnavailableError, TopicError.
        """
        if not self._assigned:
            self._next = max(self._next, self._reader.first_offset(self._partition))
            self._reader.assign({self._partition: self._next})
        end = self._reader.end_offset(self._partition)
        records: list[Record] = []
        self._assigned = False  # a poll that fails must not swallow what the polls before it brought
        while self._reader.position(self._partition) < end:
            for batch in self._reader.poll(1_000, _POLL_MS).values():
                records.extend(batch)
        self._next, self._assigned = self._reader.position(self._partition), True
        return [parse(record.value) for record in records]

    def close(self) -> None:
        self._reader.close()


def standing(client: KafkaClient, settings: Settings) -> Mapping[str, Deployment]:
    """Role -> the deployment that counts. Empty when nothing was deployed yet. Blocks."""
    with contextlib.closing(client.admin()) as admin:
        if settings.topics.models not in admin.describe_topics([settings.topics.models]):
            return {}
    with contextlib.closing(ModelsTopic(client, settings.topics.models)) as topic:
        return {found.role: found for found in topic.read() if isinstance(found, Deployment)}


def publish(client: KafkaClient, settings: Settings, deployment: Deployment) -> None:
    """Announces a deployment and waits until the broker has it."""
    with contextlib.closing(client.plain_producer()) as producer:
        value = deployment.model_dump_json().encode()
        producer.produce(settings.topics.models, value, key=deployment.role.encode(), partition=0)
        producer.flush()
