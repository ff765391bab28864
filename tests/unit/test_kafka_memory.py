"""What only the in-memory Kafka does: many records at once, members that vanish, threads."""

from __future__ import annotations

import threading
import time

import pytest

from stream.clock import ManualClock
from stream.config import KafkaSettings
from stream.errors import PartitionLostError, UnavailableError
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.kafka.memory.group import assign_range
from stream.kafka.partitioner import partition_for
from stream.kafka.port import CommittedOffset, TopicPartition
from tests.contract.kafka_clusters import Recorder, joined, read, until, values


def _client(broker: MemoryBroker, worker_id: str = "worker-0", **settings: int) -> MemoryKafka:
    return MemoryKafka(broker, KafkaSettings(worker_id=worker_id, **settings))


def _broker(partitions: int = 1) -> MemoryBroker:
    broker = MemoryBroker(ManualClock(1_000))
    broker.create_topic("events", partitions=partitions)
    return broker


def test_extend_writes_what_a_producer_would() -> None:
    one_by_one, at_once = _broker(3), _broker(3)
    rows = [(b"account-%d" % (number % 7), b"%d" % number, 5 * number) for number in range(50)]
    producer = _client(one_by_one).plain_producer()
    for key, value, timestamp_ms in rows:
        producer.produce("events", value, key=key, timestamp_ms=timestamp_ms)
    at_once.extend("events", rows)
    for partition in range(3):
        logs = [broker.log(TopicPartition("events", partition)).read(0, 100) for broker in (one_by_one, at_once)]
        assert logs[0] == logs[1]
        assert all(partition_for(record.key or b"", 3) == partition for record in logs[0][0])


def test_the_brokers_clock_stamps_records() -> None:
    broker = _broker()
    broker.append("events", b"x")
    assert broker.log(TopicPartition("events", 0)).read(0, 1)[0][0].timestamp == 1_000


def test_a_member_that_closed_without_leaving_keeps_its_place_until_its_session_ends() -> None:
    broker = _broker(2)
    first, _ = joined(_client(broker, "worker-0", session_timeout_ms=1_000), ["events"])
    second, heard = _client(broker, "worker-1").consumer(), Recorder()
    second.subscribe(["events"], heard)
    until(lambda: bool(heard.events), first, second)
    first.close(leave_group=False)
    closed = time.monotonic()
    until(lambda: len(second.assignment()) == 2, second)
    assert time.monotonic() - closed > 0.9


def test_a_stalled_member_is_removed_and_learns_that_it_has_lost() -> None:
    broker = _broker(2)
    stalled, heard = joined(_client(broker, "worker-0", max_poll_interval_ms=5_000), ["events"])
    old = stalled.group_metadata()
    member = broker.group("riskstream").members["worker-0"]
    member.last_poll -= 6
    other, _ = joined(_client(broker, "worker-1"), ["events"])
    assert len(other.assignment()) == 2
    producer = _client(broker).producer("tx")
    producer.init_transactions()
    producer.begin()
    with pytest.raises(PartitionLostError):
        producer.send_offsets({TopicPartition("events", 0): CommittedOffset(1, "")}, old)
    until(lambda: heard.kinds()[-1] == "assigned" and len(heard.events) > 1, stalled, other)
    assert heard.kinds() == ["assigned", "lost", "assigned"]


def test_poll_wakes_up_for_a_record_of_another_thread() -> None:
    broker = _broker()
    consumer, _ = joined(_client(broker), ["events"])
    writer = threading.Timer(0.2, lambda: broker.append("events", b"late"))
    writer.start()
    started = time.monotonic()
    found = consumer.poll(10, 10_000)
    assert time.monotonic() - started < 5
    assert values(found[TopicPartition("events", 0)]) == [b"late"]
    writer.join()


def test_threads_lose_and_repeat_nothing() -> None:
    broker = _broker(4)
    broker.create_topic("scores", partitions=4)
    count = 4_000
    client = _client(broker)

    def write(lane: int) -> None:
        producer = client.producer(f"tx-{lane}")
        producer.init_transactions()
        for start in range(0, count, 500):
            producer.begin()
            for number in range(start, start + 500):
                producer.produce("scores", b"%d-%d" % (lane, number), key=b"%d" % number)
            if (start // 500 + lane) % 2:
                producer.abort()
            else:
                producer.commit()

    writers = [threading.Thread(target=write, args=(lane,)) for lane in range(3)]
    for writer in writers:
        writer.start()
    consumer, _ = joined(client, ["scores"])
    kept = {b"%d-%d" % (lane, number) for lane in range(3) for number in range(count) if not (number // 500 + lane) % 2}
    records = read(consumer, len(kept))
    for writer in writers:
        writer.join()
    assert set(values(records)) == kept
    for partition in range(4):
        offsets = [record.offset for record in records if record.partition == partition]
        assert offsets == sorted(set(offsets))


def test_committed_gives_up_when_a_transaction_never_ends() -> None:
    broker = _broker()
    client = _client(broker, request_timeout_ms=1_000, transaction_timeout_ms=1_000)
    consumer, _ = joined(client, ["events"])
    endless = _client(broker, transaction_timeout_ms=900_000).producer("tx")
    endless.init_transactions()
    endless.begin()
    endless.send_offsets({TopicPartition("events", 0): CommittedOffset(1, "")}, consumer.group_metadata())
    with pytest.raises(UnavailableError):
        consumer.committed(TopicPartition("events", 0))


def test_the_range_assignor_gives_runs_of_partitions() -> None:
    shares = assign_range({"b": ["t"], "a": ["t", "u"]}, {"t": 5, "u": 2})
    assert shares["a"] == {("t", 0), ("t", 1), ("t", 2), ("u", 0), ("u", 1)}
    assert shares["b"] == {("t", 3), ("t", 4)}
