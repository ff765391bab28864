"""One suite for every Kafka client, second part: consumer groups, rebalances, zombies."""

from __future__ import annotations

import threading
import time

import pytest

from stream.errors import (
    FencedError,
    PartitionLostError,
    TurnAborted,
)
from stream.kafka.port import CommittedOffset, TopicPartition
from tests.contract.kafka_clusters import (
    Cluster,
    Recorder,
    begun,
    joined,
    read,
    until,
    values,
    write,
)


def test_a_new_owner_waits_for_the_former_ones_transaction(cluster: Cluster) -> None:
    source = cluster.create_topic()
    partition = TopicPartition(source, 0)
    first = cluster.client("worker-0")
    write(first, source, [b"done", b"next"])
    consumer, _ = joined(first, [source])
    read(consumer, 2)
    producer = begun(first, "tx-" + cluster.name)
    producer.send_offsets({partition: CommittedOffset(1, "")}, consumer.group_metadata())
    consumer.close()

    successor, _ = joined(cluster.client("worker-1"), [source])
    assert successor.poll(10, 500) == {}
    producer.commit()
    assert values(read(successor, 1)) == [b"next"]


def test_offsets_of_an_older_generation_are_refused(cluster: Cluster) -> None:
    topic = cluster.create_topic(partitions=2)
    client = cluster.client("worker-0")
    consumer, recorder = joined(client, [topic])
    old = consumer.group_metadata()
    late = Recorder()
    other = cluster.client("worker-1").consumer()
    other.subscribe([topic], late)
    until(lambda: late.kinds() == ["assigned"] and recorder.kinds()[-1] == "assigned", consumer, other)

    producer = begun(client, "tx-" + cluster.name)
    with pytest.raises(PartitionLostError):
        producer.send_offsets({TopicPartition(topic, 0): CommittedOffset(1, "")}, old)
    producer.abort()
    producer.begin()
    producer.send_offsets({TopicPartition(topic, 0): CommittedOffset(1, "")}, consumer.group_metadata())
    producer.commit()
    assert consumer.committed(TopicPartition(topic, 0)) == CommittedOffset(1, "")


def test_a_second_worker_of_the_same_id_fences_the_first(cluster: Cluster) -> None:
    topic = cluster.create_topic()
    client = cluster.client("worker-0")
    consumer, _ = joined(client, [topic])
    old = consumer.group_metadata()
    twin, _ = joined(cluster.client("worker-0"), [topic])
    deadline = time.monotonic() + 20
    with pytest.raises(FencedError):  # noqa: PT012  # the heartbeat brings the news, at some poll
        while time.monotonic() < deadline:
            consumer.poll(1, 50)
    producer = begun(client, "tx-" + cluster.name)
    with pytest.raises(FencedError):
        producer.send_offsets({TopicPartition(topic, 0): CommittedOffset(1, "")}, old)
    assert twin.poll(1, 50) == {}


def test_two_members_share_two_topics_alike(cluster: Cluster) -> None:
    topics = [cluster.create_topic(partitions=4, suffix=suffix) for suffix in ("-transactions", "-labels")]
    first, first_heard = joined(cluster.client("worker-0"), topics)
    everything = {TopicPartition(topic, index) for topic in topics for index in range(4)}
    assert first_heard.events == [("assigned", everything)]

    second, second_heard = cluster.client("worker-1").consumer(), Recorder()
    second.subscribe(topics, second_heard)
    until(lambda: bool(second_heard.events) and first_heard.kinds()[-1] == "assigned", first, second)
    assert first_heard.kinds() == ["assigned", "revoked", "assigned"]
    assert first_heard.events[1] == ("revoked", everything)
    assert first.assignment() == {TopicPartition(topic, index) for topic in topics for index in (0, 1)}
    assert second.assignment() == {TopicPartition(topic, index) for topic in topics for index in (2, 3)}
    assert first_heard.events[-1][1] == first.assignment()
    assert second_heard.events == [("assigned", second.assignment())]
    assert first_heard.threads == second_heard.threads == {threading.get_ident()}

    started = time.monotonic()
    second.close()
    until(lambda: first.assignment() == everything, first)
    assert time.monotonic() - started < 4.0  # it has left; its session would last for 6 s


def test_on_revoked_may_still_commit(cluster: Cluster) -> None:
    topic = cluster.create_topic(partitions=2)
    client = cluster.client("worker-0")
    write(client, topic, [b"event"], partition=1)
    first, heard = joined(client, [topic])
    read(first, 1)
    producer = client.producer("tx-" + cluster.name)
    producer.init_transactions()

    def flush() -> None:
        assert first.position(TopicPartition(topic, 1)) == 1
        producer.begin()
        producer.send_offsets({TopicPartition(topic, 1): CommittedOffset(1, "flushed")}, first.group_metadata())
        producer.commit()

    heard.when_revoked = flush
    second, second_heard = cluster.client("worker-1").consumer(), Recorder()
    second.subscribe([topic], second_heard)
    until(lambda: bool(second_heard.events), first, second)
    assert second.committed(TopicPartition(topic, 1)) == CommittedOffset(1, "flushed")
    assert second.position(TopicPartition(topic, 1)) == 1
    write(client, topic, [b"next"], partition=1)
    assert values(read(second, 1)) == [b"next"]


def test_an_expelled_member_has_lost_its_partitions(cluster: Cluster) -> None:
    topic = cluster.create_topic(partitions=2)
    client = cluster.client("worker-0")
    consumer, heard = joined(client, [topic])
    old = consumer.group_metadata()
    cluster.expel("worker-0")
    until(lambda: len(heard.events) >= 3, consumer)
    both = frozenset(TopicPartition(topic, index) for index in range(2))
    assert heard.events == [("assigned", both), ("lost", both), ("assigned", both)]
    producer = begun(client, "tx-" + cluster.name)
    with pytest.raises((PartitionLostError, FencedError)):
        producer.send_offsets({TopicPartition(topic, 0): CommittedOffset(1, "")}, old)


def test_a_quick_restart_keeps_the_place_and_disturbs_nobody(cluster: Cluster) -> None:
    topic = cluster.create_topic(partitions=2)
    first, _ = joined(cluster.client("worker-0"), [topic])
    second, second_heard = cluster.client("worker-1").consumer(), Recorder()
    second.subscribe([topic], second_heard)
    until(lambda: bool(second_heard.events), first, second)
    until(lambda: len(first.assignment()) == 1, first, second)
    kept = first.assignment()
    first.close(leave_group=False)
    again, again_heard = cluster.client("worker-0").consumer(), Recorder()
    again.subscribe([topic], again_heard)
    until(lambda: bool(again_heard.events), again, second)
    assert again.assignment() == kept
    assert second_heard.kinds() == ["assigned"]


def test_a_zombie_of_any_age_leaves_its_successor_alone(cluster: Cluster) -> None:
    topic = cluster.create_topic()
    partition = TopicPartition(topic, 0)
    client = cluster.client(transaction_timeout_ms=1_000)
    consumer, _ = joined(client, [topic])
    zombie = begun(client, "tx-" + cluster.name)
    zombie.send_offsets({partition: CommittedOffset(1, "zombie")}, consumer.group_metadata())
    twin, _ = joined(cluster.client(), [topic])
    successor = begun(cluster.client(), "tx-" + cluster.name)
    time.sleep(1.2)  # past its timeout, a zombie cannot tell whether it was replaced or only late
    with pytest.raises((FencedError, TurnAborted)):
        zombie.commit()
    with pytest.raises(FencedError):
        zombie.abort()
    successor.send_offsets({partition: CommittedOffset(2, "successor")}, twin.group_metadata())
    successor.commit()
    assert twin.committed(partition) == CommittedOffset(2, "successor")


def test_an_open_transaction_is_abandoned_when_its_worker_is_no_member(cluster: Cluster) -> None:
    topic = cluster.create_topic()
    client = cluster.client()
    admin, name = client.admin(), "tx-" + cluster.name
    assert not admin.is_abandoned(name, cluster.name, "worker-0")  # nobody knows it
    consumer, _ = joined(client, [topic])
    dead = begun(client, name)
    dead.produce(topic, b"lost")
    # Once the record has arrived.
    until(lambda: admin.is_abandoned(name, cluster.name, "worker-1"))
    assert not admin.is_abandoned(name, cluster.name, "worker-0")
    consumer.close(leave_group=True)
    assert admin.is_abandoned(name, cluster.name, "worker-0")
    admin.fence(name)
    assert not admin.is_abandoned(name, cluster.name, "worker-0")
