"""One suite for every Kafka client: the in-memory twin, real Apache Kafka, the embedded broker."""

from __future__ import annotations

import threading
import time

import pytest

from stream.errors import (
    FencedError,
    PartitionLostError,
    TopicError,
    TurnAborted,
)
from stream.kafka.partitioner import partition_for
from stream.kafka.port import CommittedOffset, KeyedValue, TopicPartition
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


def test_records_keep_their_order_and_all_their_parts(cluster: Cluster) -> None:
    topic = cluster.create_topic()
    producer = cluster.client().plain_producer()
    producer.produce(topic, b"one", key=b"k", headers=[("a", b"1"), ("a", b"2")], timestamp_ms=1_600_000_000_123)
    producer.produce(topic, None, key=b"k", timestamp_ms=5)
    producer.produce(topic, None)
    producer.produce(topic, b"", key=b"", headers=[("empty", b"")])
    producer.flush()
    consumer, _ = joined(cluster.client(), [topic])
    records = read(consumer, 4)
    assert [record.offset for record in records] == [0, 1, 2, 3]
    assert [(record.key, record.value) for record in records] == [
        (b"k", b"one"),
        (b"k", None),
        (None, None),
        (b"", b""),
    ]
    assert [list(record.headers) for record in records] == [[("a", b"1"), ("a", b"2")], [], [], [("empty", b"")]]
    assert [record.timestamp for record in records[:2]] == [1_600_000_000_123, 5]
    assert abs(records[2].timestamp - time.time() * 1000) < 60_000
    assert {(record.topic, record.partition) for record in records} == {(topic, 0)}


def test_keys_are_partitioned_by_murmur2(cluster: Cluster) -> None:
    topic = cluster.create_topic(partitions=4)
    keys = [f"account-{number}".encode() for number in range(200)]
    write(cluster.client(), topic, keys)
    consumer, _ = joined(cluster.client(), [topic])
    records = read(consumer, len(keys), max_records=7)
    assert {record.key: record.partition for record in records} == {key: partition_for(key, 4) for key in keys}
    assert {record.partition for record in records} == {0, 1, 2, 3}
    for partition in range(4):
        own = [record for record in records if record.partition == partition]
        assert [record.offset for record in own] == list(range(len(own)))
        assert values(own) == [key for key in keys if partition_for(key, 4) == partition]


def test_poll_returns_at_most_so_many_records(cluster: Cluster) -> None:
    topic = cluster.create_topic(partitions=2)
    write(cluster.client(), topic, [b"%d" % number for number in range(50)])
    consumer, _ = joined(cluster.client(), [topic])
    until_first = time.monotonic() + 20
    while not (found := consumer.poll(3, 100)):
        assert time.monotonic() < until_first
    assert sum(len(batch) for batch in found.values()) <= 3
    for partition, batch in found.items():
        assert consumer.position(partition) == batch[-1].offset + 1


def test_a_message_larger_than_the_fetch_size_is_still_fetched(cluster: Cluster) -> None:
    topic = cluster.create_topic()
    large = b"x" * 900_000
    write(cluster.client(), topic, [b"before", large, b"after"])
    consumer, _ = joined(cluster.client(fetch_max_bytes=65_536), [topic])
    assert values(read(consumer, 3)) == [b"before", large, b"after"]


def test_commit_shows_records_and_offsets_together(cluster: Cluster) -> None:
    client = cluster.client()
    source, target = cluster.create_topic(suffix="-in"), cluster.create_topic(suffix="-out")
    write(client, source, [b"event"])
    consumer, _ = joined(client, [source])
    read(consumer, 1)
    partition = TopicPartition(source, 0)
    assert consumer.committed(partition) is None

    producer = begun(client, "tx-" + cluster.name)
    producer.produce(target, b"score")
    producer.send_offsets({partition: CommittedOffset(1, "labels:7,9")}, consumer.group_metadata())
    admin = client.admin()
    assert admin.last_committed(cluster.name, [partition]) == {}
    producer.commit()

    assert consumer.committed(partition) == CommittedOffset(1, "labels:7,9")
    assert admin.last_committed(cluster.name, [partition]) == {partition: CommittedOffset(1, "labels:7,9")}
    reader = client.reader()
    reader.assign({TopicPartition(target, 0): 0})
    assert values(read(reader, 1)) == [b"score"]


def test_what_is_produced_at_one_time_arrives_whole_and_in_order(cluster: Cluster) -> None:
    client = cluster.client()
    topic = cluster.create_topic(partitions=2)
    producer = begun(client, "tx-" + cluster.name)
    odd: list[KeyedValue] = [(None, b"v", ()), (b"k", None, ()), (b"", b"", [("a", b"1"), ("empty", b""), ("a", b"2")])]
    # Lengths around every number of bytes that a length takes, and more than one batch holds.
    sizes = [0, 1, 63, 64, 65, 8_191, 8_192, 8_193, 16_383, 16_384, 200_000, *range(1_000, 1_300)]
    many: list[KeyedValue] = [(b"%d" % size, b"x" * size, [("size", b"%d" % size)]) for size in sizes]
    producer.produce_all(topic, 1, odd)
    producer.produce_all(topic, 1, many)
    producer.produce_all(topic, 0, [])
    producer.produce(topic, b"last", partition=1)
    producer.commit()
    producer.begin()
    producer.produce_all(topic, 1, many)
    producer.abort()
    reader = client.reader()
    reader.assign({TopicPartition(topic, 1): 0, TopicPartition(topic, 0): 0})
    records = read(reader, len(odd) + len(many) + 1)
    found = [(record.key, record.value, list(record.headers)) for record in records]
    assert found[:-1] == [(key, value, list(headers)) for key, value, headers in (*odd, *many)]
    assert found[-1][1] == b"last"
    assert [record.offset for record in records] == list(range(len(records)))
    assert all(abs(record.timestamp - time.time() * 1000) < 60_000 for record in records)
    assert reader.poll(10, 200) == {}


def test_abort_leaves_no_trace_but_offsets(cluster: Cluster) -> None:
    client = cluster.client()
    source, target = cluster.create_topic(suffix="-in"), cluster.create_topic(suffix="-out")
    write(client, source, [b"event"])
    consumer, _ = joined(client, [source])
    read(consumer, 1)
    partition = TopicPartition(source, 0)

    producer = begun(client, "tx-" + cluster.name)
    for _ in range(3):
        producer.produce(target, b"never")
    producer.send_offsets({partition: CommittedOffset(1, "")}, consumer.group_metadata())
    producer.abort()
    assert consumer.committed(partition) is None

    # The position has moved on; the engine seeks back and does the turn again.
    assert consumer.position(partition) == 1
    consumer.seek(partition, 0)
    assert values(read(consumer, 1)) == [b"event"]
    producer.begin()
    producer.produce(target, b"seen")
    producer.send_offsets({partition: CommittedOffset(1, "")}, consumer.group_metadata())
    producer.commit()
    reader = client.reader()
    reader.assign({TopicPartition(target, 0): 0})
    assert values(read(reader, 1)) == [b"seen"]
    assert consumer.committed(partition) == CommittedOffset(1, "")


def test_an_abort_without_a_transaction_does_nothing(cluster: Cluster) -> None:
    producer = cluster.client().producer("tx-" + cluster.name)
    producer.init_transactions()
    producer.abort()
    producer.begin()
    producer.abort()
    producer.begin()
    producer.commit()


def test_positions_pass_control_records_and_aborted_ones(cluster: Cluster) -> None:
    client = cluster.client()
    topic = cluster.create_topic()
    partition = TopicPartition(topic, 0)
    producer = begun(client, "tx-" + cluster.name)
    producer.produce(topic, b"kept")
    producer.commit()
    consumer, _ = joined(client, [topic])
    assert consumer.known_end_offset(partition) is None
    assert values(read(consumer, 1)) == [b"kept"]
    until(lambda: consumer.position(partition) == 2, consumer)  # the commit marker at 1
    assert consumer.end_offset(partition) == 2
    assert consumer.known_end_offset(partition) == 2

    producer.begin()
    producer.produce(topic, b"dropped")
    producer.produce(topic, b"dropped")
    # Only what has reached the broker takes offsets; a reader that is held back shows that it has.
    until(lambda: (consumer.known_end_offset(partition) or 0) >= 3, consumer)
    producer.abort()
    until(lambda: consumer.position(partition) == consumer.end_offset(partition), consumer)
    end = consumer.end_offset(partition)
    assert end > 2
    reader = client.reader()
    reader.assign({partition: 0})
    assert values(read(reader, 1)) == [b"kept"]
    until_end = time.monotonic() + 20
    while reader.position(partition) < end:
        assert reader.poll(10, 50) == {}
        assert time.monotonic() < until_end


def test_an_open_transaction_holds_back_later_records(cluster: Cluster) -> None:
    client = cluster.client()
    topic = cluster.create_topic()
    partition = TopicPartition(topic, 0)
    reader = client.reader()
    reader.assign({partition: 0})
    consumer, _ = joined(client, [topic])
    slow = begun(client, "slow-" + cluster.name)
    slow.produce(topic, b"slow")
    until(lambda: consumer.known_end_offset(partition) == 1, consumer)  # it has reached the broker
    quick = begun(client, "quick-" + cluster.name)
    quick.produce(topic, b"quick")
    quick.commit()
    write(client, topic, [b"plain"])

    assert reader.end_offset(partition) == 0
    assert reader.poll(10, 500) == {}
    slow.commit()
    assert values(read(reader, 3)) == [b"slow", b"quick", b"plain"]
    assert reader.end_offset(partition) == 5


def test_a_producer_of_the_same_id_fences_the_former(cluster: Cluster) -> None:
    client = cluster.client()
    topic = cluster.create_topic()
    zombie = begun(client, "tx-" + cluster.name)
    zombie.produce(topic, b"zombie")
    successor = begun(client, "tx-" + cluster.name)
    with pytest.raises(FencedError):  # noqa: PT012  # which call notices depends on the client
        zombie.produce_all(topic, 0, [(None, b"zombie again", ())])
        zombie.commit()
    with pytest.raises(FencedError):
        zombie.abort()
    successor.produce(topic, b"successor")
    successor.commit()
    # The zombie's failure must not have made it steal the id back.
    successor.begin()
    successor.produce(topic, b"still here")
    successor.commit()
    zombie.close()
    reader = client.reader()
    reader.assign({TopicPartition(topic, 0): 0})
    assert values(read(reader, 2)) == [b"successor", b"still here"]


def test_an_idle_producer_learns_that_it_was_fenced(cluster: Cluster) -> None:
    client = cluster.client()
    topic = cluster.create_topic()
    zombie = client.producer("tx-" + cluster.name)
    zombie.init_transactions()
    client.producer("tx-" + cluster.name).init_transactions()
    with pytest.raises(FencedError):  # noqa: PT012  # which call notices depends on the client
        zombie.begin()
        zombie.produce(topic, b"zombie")
        zombie.commit()


def test_fence_ends_the_transaction_of_a_dead_worker_at_once(cluster: Cluster) -> None:
    client = cluster.client()
    source, target = cluster.create_topic(suffix="-in"), cluster.create_topic(suffix="-out")
    partition = TopicPartition(source, 0)
    consumer, _ = joined(client, [source])
    dead = begun(client, "tx-" + cluster.name)
    dead.produce(target, b"lost")
    dead.send_offsets({partition: CommittedOffset(0, "lost")}, consumer.group_metadata())

    started = time.monotonic()
    client.admin().fence("tx-" + cluster.name)
    assert consumer.committed(partition) is None
    assert time.monotonic() - started < 5.0  # the transaction's timeout is 15 s
    with pytest.raises(FencedError):
        dead.commit()


def test_committed_waits_for_a_pending_transaction(cluster: Cluster) -> None:
    client = cluster.client()
    source = cluster.create_topic()
    partition = TopicPartition(source, 0)
    consumer, _ = joined(client, [source])
    producer = begun(client, "tx-" + cluster.name)
    producer.send_offsets({partition: CommittedOffset(3, "first")}, consumer.group_metadata())
    producer.commit()
    producer.begin()
    producer.send_offsets({partition: CommittedOffset(5, "second")}, consumer.group_metadata())

    admin = client.admin()
    started = time.monotonic()
    assert admin.last_committed(cluster.name, [partition]) == {partition: CommittedOffset(3, "first")}
    assert time.monotonic() - started < 2.0
    answers: list[CommittedOffset | None] = []
    waiting = threading.Thread(target=lambda: answers.append(consumer.committed(partition)))
    waiting.start()
    waiting.join(0.5)
    assert answers == []
    producer.commit()
    waiting.join(10)
    assert answers == [CommittedOffset(5, "second")]


def test_seek_pause_and_resume(cluster: Cluster) -> None:
    client = cluster.client()
    topic = cluster.create_topic(partitions=2)
    for partition in range(2):
        write(client, topic, [b"%d-%d" % (partition, number) for number in range(5)], partition=partition)
    consumer, _ = joined(client, [topic])
    paused, running = TopicPartition(topic, 0), TopicPartition(topic, 1)
    consumer.pause([paused])
    consumer.seek(running, 3)
    assert values(read(consumer, 2)) == [b"1-3", b"1-4"]
    assert consumer.poll(10, 200) == {}
    consumer.resume([paused])
    assert values(read(consumer, 5)) == [b"0-%d" % number for number in range(5)]
    consumer.seek(running, 4)
    assert values(read(consumer, 1)) == [b"1-4"]
    for call in (consumer.position, lambda partition: consumer.seek(partition, 0)):
        with pytest.raises(PartitionLostError):
            call(TopicPartition(topic, 9))
    for calls in (consumer.pause, consumer.resume):
        with pytest.raises(PartitionLostError):
            calls([TopicPartition(topic, 9)])


def test_what_was_fetched_before_a_pause_comes_back_although_nothing_new_is_written(cluster: Cluster) -> None:
    client = cluster.client()
    topic = cluster.create_topic(partitions=2)
    for number in range(2):
        write(client, topic, [b"%d" % n for n in range(300)], partition=number)
    consumer, _ = joined(client, [topic])
    first = next(iter(read(consumer, 10, max_records=10))).partition
    halfway, other = TopicPartition(topic, first), TopicPartition(topic, 1 - first)
    consumer.pause([halfway])
    read(consumer, 300, max_records=100)
    assert consumer.position(other) == 300
    consumer.resume([halfway])
    assert len(read(consumer, 290, max_records=100)) == 290


@pytest.mark.parametrize("at_once", [10, 1])
def test_what_is_written_during_a_pause_behind_the_end_comes_afterwards(cluster: Cluster, at_once: int) -> None:
    """Whoever pauses has been told that a partition ends here, and must not take that for a record."""
    client = cluster.client()
    topic = cluster.create_topic(partitions=2)
    consumer, _ = joined(client, [topic])
    partitions = [TopicPartition(topic, number) for number in range(2)]
    for turn in range(3):
        for partition in partitions:
            write(client, topic, [b"%d" % turn] * 5, partition=partition.partition)
        read(consumer, 10, max_records=at_once)
        for _ in range(5):
            assert consumer.poll(at_once, 50) == {}
        consumer.pause(partitions)
        for partition in partitions:
            write(client, topic, [b"%d, meanwhile" % turn], partition=partition.partition)
        assert consumer.poll(at_once, 300) == {}
        consumer.resume(partitions)
        assert values(read(consumer, 2, max_records=at_once)) == [b"%d, meanwhile" % turn] * 2


def test_a_paused_partition_gives_nothing_that_was_fetched_before(cluster: Cluster) -> None:
    client = cluster.client()
    topic = cluster.create_topic()
    partition = TopicPartition(topic, 0)
    write(client, topic, [b"%d" % number for number in range(20)])
    consumer, _ = joined(client, [topic])
    assert values(read(consumer, 5, max_records=5)) == [b"%d" % number for number in range(5)]
    consumer.pause([partition])
    assert consumer.poll(5, 200) == {}
    assert consumer.position(partition) == 5
    consumer.seek(partition, 2)
    consumer.resume([partition])
    assert values(read(consumer, 18)) == [b"%d" % number for number in range(2, 20)]


def test_a_reader_takes_any_partitions_from_any_offset(cluster: Cluster) -> None:
    client = cluster.client()
    topic = cluster.create_topic(partitions=2)
    for partition in range(2):
        write(client, topic, [b"%d-%d" % (partition, number) for number in range(4)], partition=partition)
    reader = client.reader()
    reader.assign({TopicPartition(topic, 0): 3, TopicPartition(topic, 1): 2})
    assert sorted(value or b"" for value in values(read(reader, 3))) == [b"0-3", b"1-2", b"1-3"]
    assert reader.position(TopicPartition(topic, 1)) == 4
    reader.assign({TopicPartition(topic, 1): 0})
    assert values(read(reader, 4)) == [b"1-%d" % number for number in range(4)]
    reader.assign({})
    assert reader.poll(10, 10) == {}
    reader.close()


def test_unknown_topics_are_an_error_of_their_own(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.kafka.kafka_python.connection._TOPIC_GRACE_S", 0.2)
    client = cluster.client()
    topic = cluster.create_topic()
    consumer, reader, producer = client.consumer(), client.reader(), client.plain_producer()
    missing = topic + "-missing"
    with pytest.raises(TopicError, match=missing):
        consumer.subscribe([topic, missing], Recorder())
    with pytest.raises(TopicError, match=missing):
        producer.produce(missing, b"x")
    with pytest.raises(TopicError, match=missing):
        reader.assign({TopicPartition(missing, 0): 0})
    with pytest.raises(TopicError, match="no partition 1"):
        reader.assign({TopicPartition(topic, 1): 0})
    with pytest.raises(TopicError, match=missing):
        reader.end_offset(TopicPartition(missing, 0))
    transactional = begun(client, "tx-" + cluster.name)
    with pytest.raises(TopicError, match=missing):
        transactional.produce(missing, b"x")
    with pytest.raises(TopicError, match="no partition 1"):
        transactional.produce(topic, b"x", partition=1)
    transactional.abort()
    assert client.admin().describe_topics([missing]) == {}


def test_admin_creates_and_describes_topics(cluster: Cluster) -> None:
    admin = cluster.client().admin()
    name = cluster.name + "-made"
    config = {"retention.ms": "3600000"}
    assert admin.create_topic(name, partitions=3, replication_factor=1, config=config) is True
    assert admin.create_topic(name, partitions=3, replication_factor=1, config=config) is False
    described = admin.describe_topics([name, name + "-missing"])
    assert set(described) == {name}
    assert (described[name].name, described[name].partitions, described[name].replication_factor) == (name, 3, 1)
    assert described[name].config["retention.ms"] == "3600000"
    assert len(admin.broker_ids()) == 1
    assert admin.last_committed("nobody-" + cluster.name, [TopicPartition(name, 0)]) == {}


def test_a_transaction_that_outlives_its_timeout_is_aborted_and_the_producer_goes_on(cluster: Cluster) -> None:
    client = cluster.client(transaction_timeout_ms=1_000)
    topic = cluster.create_topic()
    partition = TopicPartition(topic, 0)
    producer = begun(client, "tx-" + cluster.name)
    producer.produce(topic, b"too late")
    reader = client.reader()
    reader.assign({partition: 0})
    until_aborted = time.monotonic() + 30
    while reader.position(partition) < 2:  # the record, and the marker of its abort
        assert time.monotonic() < until_aborted
        assert reader.poll(10, 100) == {}
    with pytest.raises(TurnAborted):
        producer.commit()
    producer.abort()
    producer.begin()
    producer.produce(topic, b"in time")
    producer.commit()
    assert values(read(reader, 1)) == [b"in time"]
