"""Producers on kafka-python 3.0.

Inside a transaction every failure that is not fatal aborts the turn. Two things the vendor leaves to us:

* A record that could not be delivered in time fails its future and nothing else: committing then
  would lose it. `commit` looks at every future of the transaction first.
* The vendor's commit and abort wait without limit while a broker is away. Here they give up after
  the request and the transaction timeout. After any TurnAborted, a commit of unknown outcome too, `abort`
  makes a new producer, whose `init_transactions` waits until the outcome is settled.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import kafka.errors as vendor
from kafka import KafkaProducer
from kafka import TopicPartition as VendorPartition
from kafka.partitioner import Partitioner
from kafka.serializer import Serializer
from kafka.structs import ConsumerGroupMetadata, OffsetAndMetadata

from stream.config import KafkaSettings
from stream.errors import FatalError, FencedError, TurnAborted, UnavailableError
from stream.kafka.kafka_python.admin import check_not_replaced
from stream.kafka.kafka_python.batches import hand_over
from stream.kafka.kafka_python.connection import KnownTopics, common_options
from stream.kafka.kafka_python.errors import in_transaction, translated, translating
from stream.kafka.partitioner import partition_for
from stream.kafka.port import CommittedOffset, GroupMetadata, Headers, KeyedValue, TopicPartition

# A dead letter is its original and some headers more, so it must be allowed to be larger.
_MAX_REQUEST_BYTES = 16_777_216
_BATCH_BYTES = 131_072
_CLOSE_TIMEOUT_S = 5.0
_MAX_PENDING_FUTURES = 8_192
_NULL = b"\x00riskstream null value"


class _Values(Serializer):  # type: ignore[misc]  # the vendor has no types
    """Lets a record have neither key nor value, which kafka-python refuses and Kafka does not."""

    def serialize(self, topic: str, headers: object, data: bytes) -> bytes | None:
        return None if data is _NULL else data


class _ByKey(Partitioner):  # type: ignore[misc]
    """Kafka's rule for keys, with a memory; records without a key go round all partitions."""

    def __init__(self) -> None:
        self._next = 0

    def partition(
        self, topic: str, key: object, key_bytes: bytes | None, value: object, value_bytes: object, cluster: Any
    ) -> int:
        partitions = len(cluster.partitions_for_topic(topic))
        if key_bytes is not None:
            return partition_for(key_bytes, partitions)
        self._next += 1
        return self._next % partitions


def _producer_options(settings: KafkaSettings) -> dict[str, Any]:
    return {
        **common_options(settings),
        "acks": "all",
        "allow_auto_create_topics": False,
        "batch_size": _BATCH_BYTES,
        "linger_ms": settings.linger_ms,
        "max_request_size": _MAX_REQUEST_BYTES,
        "max_block_ms": settings.request_timeout_ms,
        "delivery_timeout_ms": settings.request_timeout_ms + settings.linger_ms,
        "partitioner": _ByKey(),
        "value_serializer": _Values(),
    }


class _Producing:
    """Queues records, and remembers their futures until they are checked."""

    _vendor: Any

    def __init__(self, topics: KnownTopics) -> None:
        self._topics = topics
        self._seen: set[str] = set()
        self._futures: list[Any] = []

    def produce(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        if topic not in self._seen:
            self._topics.require(topic)
            self._seen.add(topic)
        if partition is not None:
            self._topics.require(topic, partition)
        if value is None and key is None:
            value = _NULL
        try:
            self._futures.append(
                self._vendor.send(topic, value, key, list(headers) if headers else None, partition, timestamp_ms)
            )
            if len(self._futures) >= _MAX_PENDING_FUTURES:
                self._drop_delivered()
        except vendor.KafkaError as error:
            raise self._failure(error, f"producing to {topic}") from error

    def _failure(self, error: vendor.KafkaError, doing: str) -> Exception:
        raise NotImplementedError

    def _drop_delivered(self) -> None:
        pending = []
        for future in self._futures:
            if not future.is_done:
                pending.append(future)
            elif future.exception is not None:
                raise future.exception
        self._futures = pending

    def _deliver(self, timeout_ms: int, doing: str) -> None:
        """Blocks until every record is acknowledged; raises for the first that was not."""
        try:
            self._flush(time.monotonic() + timeout_ms / 1000)
            futures, self._futures = self._futures, []
            for future in futures:
                if future.exception is not None:
                    raise future.exception
        except vendor.KafkaError as error:
            raise self._failure(error, doing) from error

    def _flush(self, deadline: float) -> None:
        while True:
            try:
                self._vendor.flush(max(0.0, deadline - time.monotonic()))
                return
            except vendor.UnknownError:
                # A batch was too large for its topic and has been split: its parts are under way.
                time.sleep(0.001)

    def _check_topics(self) -> None:
        """TopicError if a topic that was written to is gone: then waiting will not help."""
        with contextlib.suppress(UnavailableError):
            self._topics.recheck(sorted(self._seen))


class KafkaPythonProducer(_Producing):
    """See `stream.kafka.port.Producer`. Not thread-safe.

    `begin`, `produce`, `send_offsets` and `commit` raise TurnAborted for whatever an abort cures,
    PartitionLostError when the group has moved on, and fatal errors. `abort` raises UnavailableError
    when Kafka does not answer, and may then be called again.
    """

    def __init__(self, settings: KafkaSettings, topics: KnownTopics, transactional_id: str) -> None:
        super().__init__(topics)
        self._settings = settings
        self._transactional_id = transactional_id
        self._timeout_ms = settings.request_timeout_ms + settings.transaction_timeout_ms
        self._began = 0.0
        self._in_transaction = False
        self._broken = self._has_gap = False
        self._group: ConsumerGroupMetadata | None = None
        self._ready: set[tuple[str, int]] = set()
        self._vendor = self._connect()

    def _connect(self) -> Any:
        with translating("connecting to Kafka"):
            producer = KafkaProducer(
                **_producer_options(self._settings),
                transactional_id=self._transactional_id,
                transaction_timeout_ms=self._settings.transaction_timeout_ms,
            )
        self._ready.clear()
        # An epoch bump in mid-transaction loses its records, and lets a zombie take its id back.
        producer._transaction_manager._NEEDS_EPOCH_BUMP_ERRORS = frozenset()
        return producer

    def produce_all(self, topic: str, partition: int, messages: Sequence[KeyedValue]) -> None:
        if (topic, partition) not in self._ready:
            self._topics.require(topic, partition)
            # The vendor's sender learns of a topic's leaders only when it is told of the topic.
            with translating(f"looking for the leaders of {topic}"):
                self._vendor._wait_on_metadata(topic, self._settings.request_timeout_ms)
            self._ready.add((topic, partition))
            self._seen.add(topic)
        try:
            self._futures += hand_over(self._vendor, topic, partition, messages, _BATCH_BYTES)
            self._vendor._sender.wakeup()
        except vendor.KafkaError as error:
            raise self._failure(error, f"producing to {topic}") from error

    def init_transactions(self) -> None:
        with translating(f"taking the transactional id {self._transactional_id}"):
            self._vendor.init_transactions()

    def begin(self) -> None:
        try:
            self._vendor.begin_transaction()
        except vendor.KafkaError as error:
            raise self._failure(error, "beginning a transaction") from error
        self._began = time.monotonic()
        self._in_transaction = True

    def send_offsets(self, offsets: Mapping[TopicPartition, CommittedOffset], group: GroupMetadata) -> None:
        self._group = cast(ConsumerGroupMetadata, group)
        entries = {
            VendorPartition(*partition): OffsetAndMetadata(committed.offset, committed.metadata, -1)
            for partition, committed in offsets.items()
        }
        self._transact("sending offsets", lambda manager: manager.send_offsets_to_transaction(entries, group))

    def commit(self) -> None:
        self._deliver(self._timeout_ms, "delivering the records of a transaction")
        self._transact("committing", lambda manager: manager.begin_commit())
        self._in_transaction = False

    def abort(self) -> None:
        self._futures = []
        if not self._in_transaction:
            return
        if not self._broken:
            try:
                self._transact("aborting", lambda manager: manager.begin_abort())
                self._broken = self._has_gap
            except TurnAborted:
                self._broken = True
        if self._broken:
            self._start_anew()
        self._in_transaction = False

    def _start_anew(self) -> None:
        """A new vendor's producer of the same id: its start makes the broker end what the old one left open."""
        group = self._group
        if group is not None:
            # FencedError if another worker has taken this one's place in the group: it must keep the id, too.
            check_not_replaced(self._settings, group.group_id, group.group_instance_id, group.member_id)
        self._discard()
        self._vendor = self._connect()
        self.init_transactions()
        self._broken = self._has_gap = False

    def close(self) -> None:
        """Ends an open transaction if Kafka answers at once; its successor does so otherwise."""
        if self._in_transaction and not self._broken:
            self._timeout_ms = int(_CLOSE_TIMEOUT_S * 1000)
            try:
                self._transact("aborting", lambda manager: manager.begin_abort())
            except (TurnAborted, FencedError):
                self._broken = True
        self._discard()

    def _discard(self) -> None:
        _close(self._vendor, 0.0 if self._broken else _CLOSE_TIMEOUT_S)

    def _transact(self, doing: str, start: Any) -> None:
        """One transactional request of the vendor's manager, with a limit to its wait."""
        try:
            result = start(self._vendor._transaction_manager)
            self._vendor._sender.wakeup()
            if not result.wait(self._timeout_ms):
                raise vendor.KafkaTimeoutError(f"no answer within {self._timeout_ms} ms, the outcome is unknown")
        except vendor.KafkaError as error:
            raise self._failure(error, doing) from error

    def _failure(self, error: vendor.KafkaError, doing: str) -> Exception:
        # The manager's state tells the cause; what it raises afterwards only says that there was one.
        cause = self._vendor._transaction_manager.last_error or error
        result = in_transaction(cause, doing)
        if isinstance(result, FencedError) and self._outlived_its_transaction(cause):
            # The broker has ended it and taken the epoch along: that alone does not make this worker a zombie.
            result = TurnAborted(f"{doing}: the transaction outlived kafka.transaction_timeout_ms")
        if isinstance(result, TurnAborted):
            # A request that was given up, or sent again, may still reach the broker: a new producer has a new epoch,
            # and what comes late is refused instead of becoming part of the next transaction.
            self._broken = True
            if isinstance(cause, vendor.RetriableError):
                self._check_topics()
        elif isinstance(result, FatalError) and not isinstance(result, FencedError):
            # The vendor has counted the refused records' sequence numbers, the broker has not: it would refuse
            # the next transaction's records as out of order. The abort itself still works.
            self._has_gap = True
        return result

    def _outlived_its_transaction(self, cause: Exception) -> bool:
        open_ms = (time.monotonic() - self._began) * 1000
        is_member_fenced = isinstance(cause, vendor.FencedInstanceIdError)
        return self._in_transaction and not is_member_fenced and open_ms >= self._settings.transaction_timeout_ms


class KafkaPythonPlainProducer(_Producing):
    """See `stream.kafka.port.PlainProducer`."""

    def __init__(self, settings: KafkaSettings, topics: KnownTopics) -> None:
        super().__init__(topics)
        self._timeout_ms = settings.request_timeout_ms
        with translating("connecting to Kafka"):
            self._vendor = KafkaProducer(**_producer_options(settings), enable_idempotence=True)

    def flush(self) -> None:
        # Whatever is not delivered by then has failed.
        self._deliver(2 * self._timeout_ms, "flushing")

    def close(self) -> None:
        """Delivers what is queued if Kafka answers; call `flush` to be sure of it."""
        _close(self._vendor, _CLOSE_TIMEOUT_S)

    def _failure(self, error: vendor.KafkaError, doing: str) -> Exception:
        result = translated(error, doing)
        if isinstance(result, UnavailableError):
            self._check_topics()
        return result


def _close(producer: Any, timeout_s: float) -> None:
    if timeout_s > 0:
        try:
            producer.close(timeout=timeout_s)
            return
        except vendor.KafkaTimeoutError:
            pass
    # Undelivered records would make the vendor's close raise again, before it has ended its thread.
    producer._sender.force_close()
    producer._sender.join(_CLOSE_TIMEOUT_S)
    producer.close(timeout=0)
