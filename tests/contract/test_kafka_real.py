"""What only a real broker can show of a client: outages, refusals, credentials; and the vendors' own traps."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import pytest
from confluent_kafka import KafkaError, KafkaException
from kafka import TopicPartition as VendorPartition
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.errors import KafkaConnectionError, KafkaTimeoutError
from kafka.future import Future

from stream.engine.partition import CommitNote
from stream.errors import FatalError, LogTruncatedError, NotAuthorisedError, TopicError, TurnAborted, UnavailableError
from stream.kafka.confluent.consumer import ConfluentConsumer
from stream.kafka.connect import client_of
from stream.kafka.kafka_python.consumer import KafkaPythonConsumer
from stream.kafka.kafka_python.producer import KafkaPythonProducer
from stream.kafka.port import CommittedOffset, KafkaClient, Producer, TopicPartition
from stream.stack import ApacheKafka
from stream.stack.process import HOST, free_port
from stream.state.store import Checkpoint
from tests.conftest import require
from tests.contract.kafka_clusters import RealCluster, Recorder, begun, joined, read, until, values, write

Kind = Literal["kafka-python", "confluent"]
pytestmark = pytest.mark.kafka


@pytest.fixture(params=["kafka-python", "confluent"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return cast(Kind, request.param)


@pytest.fixture
def cluster(apache_kafka: ApacheKafka, unique: str, kind: Kind) -> Iterator[RealCluster]:
    made = RealCluster(unique, apache_kafka.bootstrap, kind)
    yield made
    made.close()


@pytest.fixture
def python_cluster(apache_kafka: ApacheKafka, unique: str) -> Iterator[RealCluster]:
    made = RealCluster(unique, apache_kafka.bootstrap)
    yield made
    made.close()


def test_a_record_that_the_topic_refuses_is_never_lost_in_silence(cluster: RealCluster) -> None:
    client = cluster.client()
    topic = cluster.name
    client.admin().create_topic(topic, partitions=1, replication_factor=1, config={"max.message.bytes": "1000"})
    producer = begun(client, "tx-" + topic)
    producer.produce(topic, b"small")
    producer.produce(topic, b"x" * 5_000)
    with pytest.raises(FatalError, match=r"max\.message\.bytes"):
        producer.commit()
    producer.abort()
    producer.begin()
    producer.produce_all(topic, 0, [(None, b"small", ()), (None, b"x" * 5_000, ())])
    with pytest.raises(FatalError, match=r"max\.message\.bytes"):
        producer.commit()
    producer.abort()
    plain = client.plain_producer()
    plain.produce(topic, b"x" * 5_000)
    with pytest.raises(FatalError, match=r"max\.message\.bytes"):
        plain.flush()
    reader = client.reader()
    reader.assign({TopicPartition(topic, 0): 0})
    assert reader.poll(10, 300) == {}


def test_records_that_are_too_large_only_together_are_delivered(python_cluster: RealCluster) -> None:
    """Also after a record that was refused, whose sequence numbers the broker has never seen."""
    client, topic = python_cluster.client(), python_cluster.name
    client.admin().create_topic(topic, partitions=1, replication_factor=1, config={"max.message.bytes": "1000"})
    producer = begun(client, "tx-" + topic)
    producer.produce_all(topic, 0, [(None, b"small", ()), (None, b"x" * 5_000, ())])
    with pytest.raises(FatalError, match=r"max\.message\.bytes"):
        producer.commit()
    producer.abort()
    producer.begin()
    sent = [b"%03d" % number + b"x" * 600 for number in range(20)]
    producer.produce_all(topic, 0, [(None, value, ()) for value in sent])
    producer.commit()
    reader = client.reader()
    reader.assign({TopicPartition(topic, 0): 0})
    assert values(read(reader, len(sent))) == sent


def test_an_undelivered_record_that_the_vendor_forgives_aborts_the_turn(
    python_cluster: RealCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = python_cluster.client()
    topic = python_cluster.create_topic()
    producer = client.producer("tx-" + topic)
    assert isinstance(producer, KafkaPythonProducer)
    producer.init_transactions()
    producer.begin()
    producer.produce(topic, b"delivered")
    # A batch that expires fails its futures and leaves the vendor's transaction as it was.
    expired = Future().failure(KafkaTimeoutError("expired"))
    with monkeypatch.context() as patched:
        patched.setattr(producer._vendor, "send", lambda *_: expired)
        producer.produce(topic, b"expired")
    with pytest.raises(TurnAborted, match="expired"):
        producer.commit()
    producer.abort()
    producer.begin()
    producer.produce(topic, b"again")
    producer.commit()
    reader = client.reader()
    reader.assign({TopicPartition(topic, 0): 0})
    assert values(read(reader, 1)) == [b"again"]


def test_an_answer_that_a_short_poll_left_behind_is_not_taken_for_the_committed_offset(
    python_cluster: RealCluster,
) -> None:
    client = python_cluster.client()
    topic = python_cluster.create_topic()
    partition = TopicPartition(topic, 0)
    consumer, _ = joined(client, [topic])
    assert isinstance(consumer, KafkaPythonConsumer)
    left_behind = Future()
    left_behind.success({})
    consumer._vendor._coordinator._offset_fetch_futures[frozenset([VendorPartition(topic, 0)])] = left_behind
    producer = begun(client, "tx-" + topic)
    producer.send_offsets({partition: CommittedOffset(3, "first")}, consumer.group_metadata())
    producer.commit()
    assert consumer.committed(partition) == CommittedOffset(3, "first")


def _lying_there(consumer: KafkaPythonConsumer, client: KafkaClient, topic: str) -> None:
    """Record 1 has been fetched and waits for a poll, 2 and 3 have come behind it."""
    write(client, topic, [b"0"])
    assert values(read(consumer, 1)) == [b"0"]
    assert consumer.poll(10, 0) == {}  # sends the next fetch
    write(client, topic, [b"1"])
    until(lambda: bool(consumer._vendor._fetcher._completed_fetches))
    write(client, topic, [b"2", b"3"])


def test_a_poll_takes_what_has_come_since_the_vendor_fetched(
    python_cluster: RealCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every turn would take what the turn before it could have taken."""
    monkeypatch.setattr("stream.kafka.kafka_python.consumer._NEWER_MS", 10_000)
    client, topic = python_cluster.client(), python_cluster.create_topic()
    consumer, _ = joined(client, [topic])
    assert isinstance(consumer, KafkaPythonConsumer)
    _lying_there(consumer, client, topic)
    assert values(consumer.poll(10, 0)[TopicPartition(topic, 0)]) == [b"1", b"2", b"3"]
    assert consumer.poll(10, 0) == {}


def test_what_lies_there_holds_up_no_partition_behind_an_idle_fetch(python_cluster: RealCluster) -> None:
    """An answer that comes in just before the vendor's request: then that would ask for the idle partitions alone."""
    client, topic = python_cluster.client(), python_cluster.create_topic(partitions=2)
    consumer, _ = joined(client, [topic])
    assert isinstance(consumer, KafkaPythonConsumer)
    write(client, topic, [b"0"], partition=0)
    assert values(read(consumer, 1)) == [b"0"]
    assert consumer.poll(10, 0) == {}  # sends the next fetch
    fetcher = consumer._vendor._fetcher
    write(client, topic, [b"1", b"2"], partition=0)
    until(lambda: bool(fetcher._completed_fetches) and not fetcher.in_flight_fetches())
    fetcher.send_fetches()
    assert not fetcher.in_flight_fetches()
    assert values(consumer.poll(1, 0)[TopicPartition(topic, 0)]) == [b"1"]
    assert not fetcher.in_flight_fetches()  # a part of them is left, too
    assert values(read(consumer, 1)) == [b"2"]


class _Forgetful:
    """librdkafka after a broker came back: its own picture lacks a topic for a while."""

    def __init__(self, vendor: Any) -> None:
        self._vendor = vendor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vendor, name)

    def get_watermark_offsets(self, *_: Any, **__: Any) -> Any:
        raise KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION))

    offsets_for_times = get_watermark_offsets


def test_a_topic_that_the_client_alone_lacks_is_asked_for_again(apache_kafka: ApacheKafka, unique: str) -> None:
    cluster = RealCluster(unique, apache_kafka.bootstrap, "confluent")
    topic = cluster.create_topic()
    reader: Any = cluster.client().reader()
    asked = TopicPartition(topic, 0)
    assert reader.end_offset(asked) == 0
    vendor, reader._vendor = reader._vendor, _Forgetful(reader._vendor)
    for ask in (reader.end_offset, reader.first_offset, lambda tp: reader.offset_for_time(tp, 0)):
        with pytest.raises(UnavailableError, match="find it again"):
            ask(asked)
    reader._topics._partition_counts = lambda _: {}
    with pytest.raises(TopicError, match="riskstream topics create"):
        reader.end_offset(asked)
    # The topic was made anew, with fewer partitions.
    reader._topics._known[topic], reader._topics._partition_counts = 2, lambda _: {topic: 1}
    with pytest.raises(UnavailableError, match="find it again"):
        reader.end_offset(TopicPartition(topic, 1))
    with pytest.raises(TopicError, match="there is no partition 1"):
        reader.end_offset(TopicPartition(topic, 1))
    reader._vendor = vendor
    cluster.close()


def test_what_was_taken_before_an_error_is_taken_again(
    python_cluster: RealCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, topic = python_cluster.client(), python_cluster.create_topic()
    consumer, _ = joined(client, [topic])
    assert isinstance(consumer, KafkaPythonConsumer)
    _lying_there(consumer, client, topic)
    poll, calls = consumer._vendor.poll, []

    def fails_behind_records(**given: Any) -> Any:
        calls.append(given)
        if len(calls) > 1:
            raise KafkaConnectionError("gone")
        return poll(**given)

    with monkeypatch.context() as patched:
        patched.setattr(consumer._vendor, "poll", fails_behind_records)
        with pytest.raises(UnavailableError):
            consumer.poll(10, 0)
    assert len(calls) == 2
    assert values(read(consumer, 3)) == [b"1", b"2", b"3"]


def test_notes_that_one_client_has_committed_are_read_by_the_other(
    apache_kafka: ApacheKafka, python_cluster: RealCluster, unique: str
) -> None:
    """`kafka.client` may be changed. librdkafka reads past the end of what kafka-python commits, every other time."""
    topic = python_cluster.create_topic(partitions=16)
    client = python_cluster.client()
    consumer, _ = joined(client, [topic])
    notes = {TopicPartition(topic, p): CommitNote("w" * (p + 1), Checkpoint(5, 2), ((5, 3),)) for p in range(16)}
    producer = begun(client, "tx-" + topic)
    committed = {partition: CommittedOffset(5, note.encode()) for partition, note in notes.items()}
    producer.send_offsets(committed, consumer.group_metadata())
    producer.commit()
    other = RealCluster(unique, apache_kafka.bootstrap, "confluent")
    reading = other.client().consumer()
    for _ in range(10):
        found = {partition: reading.committed(partition) for partition in notes}
        assert {tp: answer and CommitNote.decode(answer.metadata) for tp, answer in found.items()} == notes
    other.close()


def test_a_share_without_a_byte_is_no_partition_until_the_next_join(
    python_cluster: RealCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader that did not know of a member gives it nothing; kafka-python would end with struct.error."""
    topic = python_cluster.create_topic(partitions=2)
    answers = [b""]
    join = ConsumerCoordinator._do_join_and_sync_async

    async def first_without_a_share(self: ConsumerCoordinator) -> bytes:
        share: bytes = await join(self)
        return answers.pop() if answers else share

    monkeypatch.setattr(ConsumerCoordinator, "_do_join_and_sync_async", first_without_a_share)
    consumer, heard = python_cluster.client().consumer(), Recorder()
    consumer.subscribe([topic], heard)
    until(lambda: len(consumer.assignment()) == 2, consumer)
    assert answers == []
    assert [kind for kind, partitions in heard.events if partitions] == ["assigned"]


class GivenUp:
    """What librdkafka tells of a partition whose position it holds for one outside the log."""

    def __init__(self, partition: TopicPartition) -> None:
        self._where = partition

    def error(self) -> KafkaError:
        return KafkaError(KafkaError._AUTO_OFFSET_RESET)

    def topic(self) -> str:
        return self._where.topic

    def partition(self) -> int:
        return self._where.partition


@pytest.mark.parametrize("kind", ["confluent"])
def test_a_partition_that_librdkafka_gave_up_by_mistake_is_read_on(cluster: RealCluster) -> None:
    """As after a crash of its broker. Where the position really is outside the log it is an error (test_kafka_port)."""
    client, topic = cluster.client(), cluster.create_topic()
    partition = TopicPartition(topic, 0)
    write(client, topic, [b"%d" % number for number in range(10)])
    consumer, _ = joined(client, [topic])
    assert isinstance(consumer, ConfluentConsumer)
    assert values(read(consumer, 4, max_records=4)) == [b"%d" % number for number in range(4)]
    assert consumer._noted(GivenUp(partition)) is None
    assert values(read(consumer, 6)) == [b"%d" % number for number in range(4, 10)]
    # After a rebalance librdkafka may still tell of a partition that has been taken away.
    assert consumer._noted(GivenUp(TopicPartition(topic, 1))) is None
    assert consumer.poll(10, 100) == {}
    consumer._positions[partition] = 11
    consumer._noted(GivenUp(partition))
    with pytest.raises(LogTruncatedError):
        consumer.poll(10, 100)


def test_short_polls_do_not_make_the_group_rebalance_again(cluster: RealCluster) -> None:
    topic = cluster.create_topic(partitions=4)
    members = [cluster.client(f"worker-{number}").consumer() for number in range(3)]
    heard = [Recorder() for _ in members]
    for member, recorder in zip(members, heard, strict=True):
        member.subscribe([topic], recorder)
        until(lambda recorder=recorder: bool(recorder.events), *members)  # type: ignore[misc]
    until(lambda: all(recorder.kinds()[-1] == "assigned" for recorder in heard), *members)
    assert sum(len(member.assignment()) for member in members) == 4
    settled = [len(recorder.events) for recorder in heard]
    quiet_until = time.monotonic() + 2
    while time.monotonic() < quiet_until:
        for member in members:
            member.poll(10, 1)
    assert [len(recorder.events) for recorder in heard] == settled


def test_the_vendors_log_stays_clean_over_a_rebalance(cluster: RealCluster, caplog: pytest.LogCaptureFixture) -> None:
    topic = cluster.create_topic(partitions=2)
    first, _ = joined(cluster.client("worker-0"), [topic])
    second, heard = cluster.client("worker-1").consumer(), Recorder()
    second.subscribe([topic], heard)
    until(lambda: bool(heard.events), first, second)
    write(cluster.client(), topic, [b"secret-account"])
    cluster.close()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert "secret-account" not in caplog.text


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[ApacheKafka]:
    """A broker that the test may kill."""
    require(ApacheKafka)
    with ApacheKafka(tmp_path) as server:
        yield server


def test_an_outage_aborts_the_turn_and_ends_with_it(own_broker: ApacheKafka, kind: Kind) -> None:
    cluster = RealCluster("outage", own_broker.bootstrap, kind)
    topic = cluster.create_topic()
    client = cluster.client(request_timeout_ms=1_500, transaction_timeout_ms=1_500)
    producer = begun(client, "tx")
    producer.produce(topic, b"before")
    producer.commit()
    reader = client.reader()
    reader.assign({TopicPartition(topic, 0): 0})
    assert values(read(reader, 1)) == [b"before"]

    producer.begin()
    producer.produce(topic, b"lost")
    own_broker.kill()
    started = time.monotonic()
    with pytest.raises(TurnAborted):
        producer.commit()
    with pytest.raises(UnavailableError):
        producer.abort()
    with pytest.raises(UnavailableError):
        client.admin()
    assert time.monotonic() - started < 30
    assert reader.poll(10, 50) == {}

    own_broker.start()
    deadline = time.monotonic() + 60
    while not _has_aborted(producer):
        assert time.monotonic() < deadline
    producer.begin()
    producer.produce(topic, b"after")
    producer.commit()
    assert values(read(reader, 1)) == [b"after"]
    cluster.close()


def _has_aborted(producer: Producer) -> bool:
    """A broker that has just started may not answer in time; then the abort is called again."""
    try:
        producer.abort()
    except UnavailableError:
        return False
    return True


@pytest.fixture(scope="module")
def guarded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A broker with passwords and rights; bootstrap servers of its SASL listener."""
    require(ApacheKafka)
    ports = {"kafka": free_port(), "controller": free_port()}
    sasl = f"{HOST}:{free_port()}"
    users = 'user_reader="right" user_admin="right"'
    properties = {
        "listeners": f"PLAINTEXT://{HOST}:{ports['kafka']},CONTROLLER://{HOST}:{ports['controller']},SASL://{sasl}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl.plain.sasl.jaas.config": (
            f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};"
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:admin;User:ANONYMOUS",
    }
    server = ApacheKafka(tmp_path_factory.mktemp("guarded"), ports=ports, properties=properties).start()
    RealCluster("guarded", server.bootstrap).create_topic()
    yield sasl
    server.kill()


def _guarded_client(bootstrap: str, user: str, password: str, kind: Kind) -> KafkaClient:
    settings = RealCluster("guarded", bootstrap).settings(
        "worker-0",
        bootstrap_servers=bootstrap,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        sasl_username=user,
        sasl_password=password,
        request_timeout_ms=4_000,
        client=kind,
    )
    return client_of(settings)


def test_credentials_are_passed_through(guarded_broker: str, unique: str, kind: Kind) -> None:
    cluster = RealCluster(unique, guarded_broker)
    client = cluster._closing(_guarded_client(guarded_broker, "admin", "right", kind))
    client.admin().create_topic(unique, partitions=1, replication_factor=1, config={})
    write(client, unique, [b"let in"])
    consumer, _ = joined(client, [unique])
    assert values(read(consumer, 1)) == [b"let in"]
    cluster.close()


@pytest.mark.parametrize("make", ["admin", "consumer", "plain_producer", "reader"])
def test_a_wrong_password_is_not_an_outage(guarded_broker: str, make: str, kind: Kind) -> None:
    client = _guarded_client(guarded_broker, "admin", "wrong", kind)
    started = time.monotonic()
    with pytest.raises(NotAuthorisedError, match="sasl") as refused:
        getattr(client, make)()
    assert time.monotonic() - started < 4
    assert "wrong" not in str(refused.value)


def test_missing_rights_are_named(guarded_broker: str, kind: Kind) -> None:
    client = _guarded_client(guarded_broker, "reader", "right", kind)
    with pytest.raises(NotAuthorisedError):
        client.plain_producer().produce("guarded", b"x")
    with pytest.raises(NotAuthorisedError):
        client.reader().assign({TopicPartition("guarded", 0): 0})
    with pytest.raises(NotAuthorisedError):
        client.producer("tx").init_transactions()
    with pytest.raises(NotAuthorisedError):
        client.admin().last_committed("guarded", [TopicPartition("guarded", 0)])
