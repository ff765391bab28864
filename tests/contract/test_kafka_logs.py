"""The ends of a log, for every Kafka client: where reading starts, and what retention has dropped."""

from __future__ import annotations

import time

import pytest

from stream.errors import LogTruncatedError
from stream.kafka.port import CommittedOffset, TopicPartition
from tests.contract.kafka_clusters import Cluster, Recorder, begun, joined, read, values, write


def test_offsets_by_time_and_the_ends_of_the_log(cluster: Cluster) -> None:
    client = cluster.client()
    topic = cluster.create_topic()
    partition = TopicPartition(topic, 0)
    reader = client.reader()
    assert (reader.first_offset(partition), reader.end_offset(partition)) == (0, 0)
    assert reader.offset_for_time(partition, 0) is None
    producer = client.plain_producer()
    for number in range(10):
        producer.produce(topic, b"%d" % number, timestamp_ms=1_000 + 10 * number)
        producer.flush()
    assert reader.offset_for_time(partition, 0) == 0
    assert reader.offset_for_time(partition, 1_030) == 3
    assert reader.offset_for_time(partition, 1_031) == 4
    assert reader.offset_for_time(partition, 1_091) is None
    assert (reader.first_offset(partition), reader.end_offset(partition)) == (0, 10)
    cluster.delete_before(partition, 4)
    assert (reader.first_offset(partition), reader.end_offset(partition)) == (4, 10)


def test_reading_what_retention_has_dropped_is_an_error(cluster: Cluster) -> None:
    client = cluster.client()
    topic = cluster.create_topic()
    partition = TopicPartition(topic, 0)
    write(client, topic, [b"%d" % number for number in range(10)])
    consumer, _ = joined(client, [topic])
    read(consumer, 10)
    cluster.delete_before(partition, 4)
    consumer.seek(partition, 2)
    deadline = time.monotonic() + 20
    with pytest.raises(LogTruncatedError):  # noqa: PT012  # a fetch brings the news, at some poll
        while time.monotonic() < deadline:
            assert consumer.poll(10, 50) == {}
    consumer.seek(partition, 4)
    assert len(read(consumer, 6)) == 6
    reader = client.reader()
    reader.assign({partition: 11})
    with pytest.raises(LogTruncatedError):  # noqa: PT012
        while time.monotonic() < deadline:
            assert reader.poll(10, 50) == {}


def test_a_committed_offset_that_retention_has_dropped_is_for_the_listener_to_judge(cluster: Cluster) -> None:
    """It pauses what it is assigned: no fetch fails before a place has been chosen."""
    client = cluster.client()
    topic = cluster.create_topic()
    partition = TopicPartition(topic, 0)
    write(client, topic, [b"%d" % number for number in range(10)])
    consumer, _ = joined(client, [topic])
    producer = begun(client, "tx-" + cluster.name)
    producer.send_offsets({partition: CommittedOffset(2, "")}, consumer.group_metadata())
    producer.commit()
    consumer.close()
    cluster.delete_before(partition, 4)
    recorder = Recorder()
    consumer = client.consumer()
    recorder.when_assigned = consumer.pause
    consumer.subscribe([topic], recorder)
    # As a worker with nothing to wait for: a long poll brings the share and a fetch from its old place at once.
    deadline = time.monotonic() + 20
    while "assigned" not in recorder.kinds():
        assert time.monotonic() < deadline
        assert consumer.poll(10, 2_000) == {}
    for _ in range(3):
        assert consumer.poll(10, 200) == {}
    committed = consumer.committed(partition)
    assert committed is not None
    assert committed.offset < consumer.first_offset(partition) == 4
    consumer.seek(partition, 4)
    consumer.resume([partition])
    assert len(read(consumer, 6)) == 6


def test_a_partition_without_a_commit_starts_at_its_first_offset(cluster: Cluster) -> None:
    client = cluster.client()
    topic = cluster.create_topic(partitions=2)
    write(client, topic, [b"a", b"b", b"c"], partition=0)
    write(client, topic, [b"d", b"e"], partition=1)
    cluster.delete_before(TopicPartition(topic, 0), 1)
    consumer, _ = joined(client, [topic])
    producer = begun(client, "tx-" + cluster.name)
    producer.send_offsets({TopicPartition(topic, 1): CommittedOffset(1, "")}, consumer.group_metadata())
    producer.commit()
    consumer.close()
    consumer, _ = joined(client, [topic])
    assert sorted(value or b"" for value in values(read(consumer, 3))) == [b"b", b"c", b"e"]
