"""Producers on confluent-kafka.

librdkafka's transactional producer looks after delivery itself: a record that could not be delivered makes
the commit fail. A producer that has met a fatal error, or a commit whose outcome is unknown, cannot be used
any more: `abort` then makes a new one of the same id, whose `init_transactions` waits until the outcome is
settled; before that it makes sure that no other worker has taken the id.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import TopicPartition as VendorPartition

from stream.config import KafkaSettings
from stream.errors import FencedError, PartitionLostError, TurnAborted, UnavailableError
from stream.kafka.confluent.connection import LOGGER, Background, common_options, wait_connected
from stream.kafka.confluent.consumer import Membership
from stream.kafka.confluent.errors import in_transaction, translated, translating
from stream.kafka.kafka_python.admin import check_not_replaced
from stream.kafka.kafka_python.connection import KnownTopics
from stream.kafka.port import CommittedOffset, GroupMetadata, Headers, KeyedValue, TopicPartition

# A dead letter is its original and some headers more, so it must be allowed to be larger.
_MAX_MESSAGE_BYTES = 16_777_216
# Above the topics' max.message.bytes a batch is refused: no output topic may allow less.
_BATCH_BYTES = 131_072
_CLOSE_TIMEOUT_S = 5.0
# A commit and a flush send at once, whatever the linger: until then records only gather.
_LINGER_MS = 20
_QUEUE_FULL_S = 0.05


class _Producing:
    """Queues records, and remembers the first that could not be delivered."""

    _vendor: Any

    def __init__(self, topics: KnownTopics) -> None:
        self._topics = topics
        self._seen: set[tuple[str, int]] = set()
        self._undelivered: KafkaError | None = None
        self._background = Background()

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
        place = -1 if partition is None else partition
        if (topic, place) not in self._seen:
            self._topics.require(topic, max(place, 0))
            self._seen.add((topic, place))
        options: dict[str, Any] = {} if timestamp_ms is None else {"timestamp": timestamp_ms}
        if headers:
            options["headers"] = list(headers)
        while True:
            try:
                self._vendor.produce(topic, value, key, place, **options)
                return
            except BufferError:
                self._vendor.poll(_QUEUE_FULL_S)
            except KafkaException as error:
                raise self._failure(error.args[0], f"producing to {topic}") from error

    def produce_all(self, topic: str, partition: int, messages: Sequence[KeyedValue]) -> None:
        for key, value, headers in messages:
            self.produce(topic, value, key=key, headers=headers, partition=partition)

    def _options(self, settings: KafkaSettings) -> dict[str, Any]:
        return {
            **common_options(settings, self._background),
            "acks": "all",
            "enable.idempotence": True,
            "batch.size": _BATCH_BYTES,
            "batch.num.messages": 10_000,
            "linger.ms": max(settings.linger_ms, _LINGER_MS),
            "message.max.bytes": _MAX_MESSAGE_BYTES,
            "partitioner": "murmur2_random",
            "delivery.report.only.error": True,
            "on_delivery": self._on_delivery,
        }

    def _on_delivery(self, error: KafkaError | None, _: Any) -> None:
        purged = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)
        if error is not None and self._undelivered is None and error.code() not in purged:
            self._undelivered = error

    def _failure(self, error: KafkaError, doing: str) -> Exception:
        raise NotImplementedError

    def _check_topics(self) -> None:
        """TopicError if a topic that was written to is gone: then waiting will not help."""
        with contextlib.suppress(UnavailableError):
            self._topics.recheck(sorted({topic for topic, _ in self._seen}))


class ConfluentProducer(_Producing):
    """See `stream.kafka.port.Producer`. Not thread-safe.

    `begin`, `produce`, `send_offsets` and `commit` raise TurnAborted for whatever an abort cures,
    PartitionLostError when the group has moved on, and fatal errors. `abort` raises UnavailableError
    when Kafka does not answer, and may then be called again.
    """

    def __init__(self, settings: KafkaSettings, topics: KnownTopics, transactional_id: str) -> None:
        super().__init__(topics)
        self._settings = settings
        self._transactional_id = transactional_id
        self._timeout_s = (settings.request_timeout_ms + settings.transaction_timeout_ms) / 1000
        self._began = 0.0
        self._in_transaction = False
        self._broken = False
        self._fenced: FencedError | None = None
        self._group: Membership | None = None
        self._vendor = self._connect()

    def _connect(self) -> Any:
        settings, self._background, self._undelivered = self._settings, Background(), None
        longest_ms = min(settings.request_timeout_ms, settings.transaction_timeout_ms)
        options = {
            **self._options(settings),
            "transactional.id": self._transactional_id,
            "transaction.timeout.ms": settings.transaction_timeout_ms,
            # librdkafka refuses what is longer than the transaction may last.
            "socket.timeout.ms": longest_ms,
            "message.timeout.ms": longest_ms,
        }
        with translating("connecting to Kafka"):
            producer = Producer(options, logger=LOGGER)
        wait_connected(producer, settings, self._background)
        return producer

    def init_transactions(self) -> None:
        with translating(f"taking the transactional id {self._transactional_id}"):
            self._vendor.init_transactions(self._timeout_s)

    def begin(self) -> None:
        self._transact("beginning a transaction", self._vendor.begin_transaction)
        self._began = time.monotonic()
        self._undelivered = None
        self._in_transaction = True

    def send_offsets(self, offsets: Mapping[TopicPartition, CommittedOffset], group: GroupMetadata) -> None:
        self._group = cast(Membership, group)
        entries = [VendorPartition(*tp, committed.offset, committed.metadata) for tp, committed in offsets.items()]
        membership = self._group.vendor
        self._transact(
            "sending offsets",
            lambda: self._vendor.send_offsets_to_transaction(entries, membership, self._timeout_s),
        )

    def commit(self) -> None:
        self._transact("committing", lambda: self._vendor.commit_transaction(self._timeout_s))
        self._in_transaction = False

    def abort(self) -> None:
        if self._fenced is not None:
            raise self._fenced
        if not self._in_transaction:
            return
        if not self._broken:
            try:
                self._transact("aborting", lambda: self._vendor.abort_transaction(self._timeout_s))
            except TurnAborted:
                self._broken = True
        if self._broken:
            self._start_anew()
        self._undelivered = None
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
        self._broken = False

    def close(self) -> None:
        """Ends an open transaction if Kafka answers at once; its successor does so otherwise."""
        if self._vendor is None:
            return
        if self._in_transaction and not self._broken:
            with contextlib.suppress(KafkaException):
                self._vendor.abort_transaction(_CLOSE_TIMEOUT_S)
        self._discard()

    def _discard(self) -> None:
        # The vendor's producer has no close: the last reference ends its threads.
        if self._vendor is not None:
            self._vendor.purge()
        self._vendor = None

    def _transact(self, doing: str, call: Callable[[], None]) -> None:
        try:
            call()
        except KafkaException as error:
            raise self._failure(error.args[0], doing) from error

    def _failure(self, error: KafkaError, doing: str) -> Exception:
        # A fatal error, or one record's failure, tells the cause; the call itself only says that there was one.
        cause = self._background.fatal or self._undelivered or error
        result = in_transaction(cause, doing)
        if isinstance(result, FencedError) and self._outlived_its_transaction(cause):
            # The broker has ended it and taken the epoch along: that alone does not make this worker a zombie.
            result = TurnAborted(f"{doing}: the transaction outlived kafka.transaction_timeout_ms")
        if isinstance(result, TurnAborted) and not isinstance(result, PartitionLostError):
            # librdkafka says what an abort cures; after anything else only a new producer will do.
            self._broken = self._broken or not error.txn_requires_abort()
            if not error.txn_requires_abort() or cause.retriable():
                self._check_topics()
        if isinstance(result, FencedError):
            # librdkafka lets a fenced producer abort as if nothing had happened.
            self._fenced = result
        return result

    def _outlived_its_transaction(self, cause: KafkaError) -> bool:
        open_ms = (time.monotonic() - self._began) * 1000
        is_member_fenced = cause.code() == KafkaError.FENCED_INSTANCE_ID
        return self._in_transaction and not is_member_fenced and open_ms >= self._settings.transaction_timeout_ms


class ConfluentPlainProducer(_Producing):
    """See `stream.kafka.port.PlainProducer`."""

    def __init__(self, settings: KafkaSettings, topics: KnownTopics) -> None:
        super().__init__(topics)
        self._timeout_s = settings.request_timeout_ms / 1000
        options = {**self._options(settings), "message.timeout.ms": settings.request_timeout_ms}
        with translating("connecting to Kafka"):
            self._vendor = Producer(options, logger=LOGGER)
        wait_connected(self._vendor, settings, self._background)

    def flush(self) -> None:
        left = self._vendor.flush(2 * self._timeout_s)
        undelivered, self._undelivered = self._undelivered, None
        if undelivered is not None:
            raise self._failure(undelivered, "flushing")
        if left:
            raise UnavailableError(f"flushing: {left} records are not acknowledged")

    def close(self) -> None:
        """Delivers what is queued if Kafka answers; call `flush` to be sure of it."""
        self._vendor.flush(_CLOSE_TIMEOUT_S)
        self._vendor.purge()

    def _failure(self, error: KafkaError, doing: str) -> Exception:
        result = translated(error, doing)
        if isinstance(result, UnavailableError):
            self._check_topics()
        return result
