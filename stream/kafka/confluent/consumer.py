"""Consumer and reader on confluent-kafka.

librdkafka runs the rebalance callbacks inside `poll`, on the caller's thread, as the port wants it. What it
does not tell by itself, and is kept here: positions past control records (from its end-of-partition events),
and where a partition without a committed offset begins.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

from confluent_kafka import OFFSET_END, OFFSET_STORED, Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as VendorPartition

from stream.config import KafkaSettings
from stream.errors import FencedError, PartitionLostError, TopicError, UnavailableError
from stream.kafka.confluent.connection import LOGGER, Background, common_options, wait_connected
from stream.kafka.confluent.errors import translated, translating
from stream.kafka.kafka_python.admin import clean_metadata, remove_static_member
from stream.kafka.kafka_python.connection import KnownTopics
from stream.kafka.port import CommittedOffset, Headers, RebalanceListener, TopicPartition

_MAX_PARTITION_FETCH_BYTES = 1_048_576
# The broker looks for transactions that have timed out at this interval
# (transaction.abort.timed.out.transaction.cleanup.interval.ms).
_BROKER_ABORT_SCAN_MS = 10_000
# How librdkafka words that the group has committed nothing: its code is that of a position outside the log, too.
_NO_OFFSET = "No offset stored"
_SEEK_AGAIN_S, _SEEK_PATIENCE_S = 0.005, 1.0


class Fetched(NamedTuple):
    """A consumed record, in the attributes of `port.Record`."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Membership(NamedTuple):
    """What a producer needs to be fenced by the group's generation; the rest says who asked."""

    vendor: Any
    group_id: str
    group_instance_id: str
    member_id: str


_Records = Mapping[TopicPartition, Sequence[Fetched]]


def _consumer_options(settings: KafkaSettings, background: Background) -> dict[str, Any]:
    return {
        **common_options(settings, background),
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # "earliest" would silently jump over records that retention has dropped.
        "auto.offset.reset": "error",
        "enable.partition.eof": True,
        "fetch.max.bytes": max(settings.fetch_max_bytes, _MAX_PARTITION_FETCH_BYTES),
        "max.partition.fetch.bytes": min(settings.fetch_max_bytes, _MAX_PARTITION_FETCH_BYTES),
        "fetch.wait.max.ms": min(500, settings.request_timeout_ms // 2),
        "fetch.error.backoff.ms": 50,
        # Of each partition at most so much is fetched ahead.
        "queued.max.messages.kbytes": max(settings.fetch_max_bytes // 1024, 1024),
    }


class _Positions:
    """Positions and offsets: what the consumer and the reader share."""

    _vendor: Any
    _topics: KnownTopics
    _background: Background
    _timeout_s: float
    _positions: dict[TopicPartition, int]
    _paused: set[TopicPartition]
    _stopped: dict[TopicPartition, KafkaError]
    """Partitions that librdkafka has given up: as far as it knows their positions are not in the log. With its word."""

    def first_offset(self, partition: TopicPartition) -> int:
        return self._ends(partition)[0]

    def end_offset(self, partition: TopicPartition) -> int:
        return self._ends(partition)[1]

    def _ends(self, partition: TopicPartition) -> tuple[int, int]:
        with self._asking("asking for the offsets of", partition):
            answer = self._vendor.get_watermark_offsets(VendorPartition(*partition), timeout=self._timeout_s)
        if answer is None:
            raise UnavailableError(f"asking for the offsets of {_name(partition)}: Kafka does not answer")
        return int(answer[0]), int(answer[1])

    @contextmanager
    def _asking(self, doing: str, partition: TopicPartition) -> Iterator[None]:
        """TopicError if Kafka lacks the partition. librdkafka may lack it for a while after a broker came back."""
        self._topics.require(*partition)
        try:
            with translating(f"{doing} {_name(partition)}"):
                yield
        except TopicError as error:
            self._topics.recheck([partition.topic])
            raise UnavailableError(f"{doing} {_name(partition)}: the client has yet to find it again") from error

    def _take(self, max_records: int, timeout_ms: int) -> tuple[dict[TopicPartition, list[Fetched]], Exception | None]:
        """Waits for one message, then takes what is there; with the first error among them."""
        self._start_stopped()
        first = self._vendor.poll(timeout_ms / 1000)
        if first is None:
            return {}, None
        messages = [first]
        if max_records > 1:
            # With a timeout it would wait until so many have come.
            messages += self._vendor.consume(max_records - 1, 0)
        taken: dict[TopicPartition, list[Fetched]] = {}
        problem = None
        for message in messages:
            if message.error() is not None:
                problem = self._noted(message) or problem
                continue
            record = Fetched(
                message.topic(),
                message.partition(),
                message.offset(),
                message.timestamp()[1],
                message.key(),
                message.value(),
                message.headers() or (),
            )
            tp = TopicPartition(record.topic, record.partition)
            if tp in taken:
                taken[tp].append(record)
            else:
                taken[tp] = [record]
        for tp, records in taken.items():
            # An end of the partition behind them may have told of more: control records have offsets, too.
            self._positions[tp] = max(self._positions.get(tp, 0), records[-1].offset + 1)
        return taken, problem

    def _noted(self, message: Any) -> Exception | None:
        """Takes in an event that is no record; an exception if it is an error."""
        error = message.error()
        if error.code() == KafkaError._PARTITION_EOF:
            # Past the control records, too.
            self._positions[TopicPartition(message.topic(), message.partition())] = message.offset()
            return None
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            partition = TopicPartition(message.topic(), message.partition())
            self._stopped[partition] = error
            return None
        if error.code() == KafkaError._MAX_POLL_EXCEEDED or error.retriable():
            return None
        return translated(error, f"reading {message.topic()}" if message.topic() else "polling")

    def _seek(self, partition: TopicPartition, offset: int) -> None:
        deadline = time.monotonic() + _SEEK_PATIENCE_S
        while True:
            try:
                self._vendor.seek(VendorPartition(*partition, offset))
                break
            except KafkaException as error:
                if error.args[0].code() != KafkaError._STATE:
                    raise translated(error.args[0], f"seeking in {_name(partition)}") from error
                # Assigned a moment ago, and librdkafka's own thread has not begun with it: or it has given up
                # on the partition, because its position is not in the log.
                if partition in self._stopped or time.monotonic() > deadline:
                    self._positions[partition] = offset
                    self._assign_anew()
                    break
                time.sleep(_SEEK_AGAIN_S)
        self._positions[partition] = offset

    def _start_stopped(self) -> None:
        """After a crash of a broker librdkafka may be wrong. LogTruncatedError if it is not.

        Whoever has paused a partition chooses where it goes on.
        """
        stopped = {tp: error for tp, error in self._stopped.items() if tp not in self._paused}
        for partition, error in stopped.items():
            first, end = self._ends(partition)
            if not first <= self._positions.get(partition, -1) <= end:
                raise translated(error, f"reading {partition[0]}")
        if stopped:
            self._assign_anew()

    def _assign_anew(self) -> None:
        """The same partitions, each from its position: the only way to start one again that has stopped."""
        everything = [TopicPartition(tp.topic, tp.partition) for tp in self._vendor.assignment()]
        self._vendor.assign([VendorPartition(*tp, self._positions.get(tp, OFFSET_STORED)) for tp in everything])
        self._stopped.clear()
        if self._paused:
            self._vendor.pause([VendorPartition(*tp) for tp in self._paused])


class ConfluentConsumer(_Positions):
    """See `stream.kafka.port.Consumer`. Not thread-safe. `close` does not run the listener."""

    def __init__(self, settings: KafkaSettings, topics: KnownTopics) -> None:
        self._settings, self._topics = settings, topics
        self._timeout_s = settings.request_timeout_ms / 1000
        self._listener: RebalanceListener | None = None
        self._background = Background()
        self._assigned: frozenset[TopicPartition] = frozenset()
        self._positions = {}
        self._paused, self._stopped = set(), {}
        self._rebalanced = self._closing = False
        options = {
            **_consumer_options(settings, self._background),
            "group.id": settings.group,
            "group.instance.id": settings.worker_id,
            "session.timeout.ms": settings.session_timeout_ms,
            "heartbeat.interval.ms": settings.heartbeat_interval_ms,
            "max.poll.interval.ms": max(settings.max_poll_interval_ms, settings.session_timeout_ms),
            "partition.assignment.strategy": "range",
        }
        with translating("connecting to Kafka"):
            self._vendor = Consumer(options, logger=LOGGER)
        wait_connected(self._vendor, settings, self._background)

    def subscribe(self, topics: Sequence[str], listener: RebalanceListener) -> None:
        """TopicError if one of the topics does not exist. Blocks for a request."""
        for topic in topics:
            self._topics.require(topic)
        self._listener = listener
        with translating("subscribing"):
            self._vendor.subscribe(
                list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )

    def poll(self, max_records: int, timeout_ms: int) -> _Records:
        deadline = time.monotonic() + timeout_ms / 1000
        while True:
            self._rebalanced = False
            with translating("polling"):
                taken, problem = self._take(max_records, max(timeout_ms, 0))
            fatal = self._background.fatal
            if fatal is not None:
                problem = translated(fatal, "polling", otherwise=FencedError)
            if taken and (self._rebalanced or problem is not None):
                self._rewind(taken)
                taken = {}
            if problem is not None:
                raise problem
            timeout_ms = int((deadline - time.monotonic()) * 1000)
            if taken or timeout_ms <= 0:
                return taken

    def _noted(self, message: Any) -> Exception | None:
        error = message.error()
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            partition = TopicPartition(message.topic(), message.partition())
            if partition not in self._assigned:
                return None  # it came late: the partition has been taken away since, and its position is forgotten
            if _NO_OFFSET in error.str():
                # Several come when several partitions are new; the first has started them all.
                if partition not in self._positions:
                    self._start_at_first_offset()
                return None
        return super()._noted(message)

    def _start_at_first_offset(self) -> None:
        """For the partitions that have neither a position nor a committed offset."""
        for partition in self._assigned - self._positions.keys():
            if self.committed(partition) is None:
                self._positions[partition] = self.first_offset(partition)
        self._assign_anew()

    def _rewind(self, taken: _Records) -> None:
        """Records that came with a rebalance, or beside an error, wait: they are fetched again."""
        for partition, records in taken.items():
            if partition in self._assigned:
                self._seek(partition, records[0].offset)

    # --- rebalance, inside poll

    def _on_assign(self, _: Any, partitions: list[VendorPartition]) -> None:
        self._vendor.assign(partitions)
        self._forget()
        self._assigned = frozenset(_own(partitions))
        self._rebalanced = True
        self._listening().on_assigned(sorted(self._assigned))

    def _on_revoke(self, _: Any, partitions: list[VendorPartition]) -> None:
        if self._closing:
            return
        self._rebalanced = True
        if partitions:
            self._listening().on_revoked(sorted(_own(partitions)))
        self._forget()

    def _on_lost(self, _: Any, partitions: list[VendorPartition]) -> None:
        if self._closing:
            return
        self._rebalanced = True
        self._listening().on_lost(sorted(_own(partitions)))
        self._forget()

    def _forget(self) -> None:
        self._assigned = frozenset()
        self._positions, self._paused, self._stopped = {}, set(), {}

    def _listening(self) -> RebalanceListener:
        assert self._listener is not None  # no rebalance before subscribe
        return self._listener

    # --- partitions

    def assignment(self) -> frozenset[TopicPartition]:
        return self._assigned

    def position(self, partition: TopicPartition) -> int:
        self._require(partition)
        known = self._positions.get(partition)
        if known is None:
            committed = self.committed(partition)
            known = committed.offset if committed is not None else self.first_offset(partition)
        return known

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._require(partition)
        self._seek(partition, offset)

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        chosen = list(partitions)
        with translating("pausing"):
            self._vendor.pause([self._require(partition) for partition in chosen])
        self._paused.update(chosen)

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        chosen = list(partitions)
        for partition in self._assigned.intersection(chosen) & self._positions.keys():
            # Left to itself librdkafka goes on behind an end of the partition that it told of in a batch, as if that
            # had been a record, and so skips the next one.
            self._seek(partition, self._positions[partition])
        with translating("resuming"):
            self._vendor.resume([self._require(partition) for partition in chosen])
        self._paused.difference_update(chosen)
        if self._stopped.keys() & set(chosen):
            self._assign_anew()

    def _require(self, partition: TopicPartition) -> VendorPartition:
        if partition not in self._assigned:
            raise PartitionLostError(f"{_name(partition)} is not assigned")
        return VendorPartition(*partition)

    def committed(self, partition: TopicPartition, *, timeout_ms: int | None = None) -> CommittedOffset | None:
        """By default UnavailableError when a pending transaction outlives its timeout and the broker's scan for it."""
        settings = self._settings
        if timeout_ms is None:
            timeout_ms = settings.request_timeout_ms + settings.transaction_timeout_ms + _BROKER_ABORT_SCAN_MS
        with translating(f"reading the committed offset of {_name(partition)}"):
            (answer,) = self._vendor.committed([VendorPartition(*partition)], timeout=timeout_ms / 1000)
        if answer.error is not None:
            raise translated(answer.error, f"reading the committed offset of {_name(partition)}")
        return None if answer.offset < 0 else CommittedOffset(answer.offset, clean_metadata(_metadata(answer)))

    def known_end_offset(self, partition: TopicPartition) -> int | None:
        self._require(partition)
        answer = self._vendor.get_watermark_offsets(VendorPartition(*partition), cached=True)
        return None if answer is None or answer[1] < 0 else int(answer[1])

    def group_metadata(self) -> Membership:
        settings = self._settings
        metadata, member = self._vendor.consumer_group_metadata(), self._vendor.memberid() or ""
        return Membership(metadata, settings.group, settings.worker_id, member)

    def close(self, *, leave_group: bool = True) -> None:
        # Whoever closes has flushed already.
        if self._closing:
            return
        self._closing = True
        with translating("leaving the group"):
            was_member = bool(self._vendor.memberid())
            self._vendor.close()
        self._forget()
        if leave_group and was_member:
            # A static member never leaves by itself; this is what takes its place away at once.
            remove_static_member(self._settings)


class ConfluentReader(_Positions):
    """See `stream.kafka.port.Reader`. Not thread-safe."""

    def __init__(self, settings: KafkaSettings, topics: KnownTopics) -> None:
        self._topics = topics
        self._timeout_s = settings.request_timeout_ms / 1000
        self._background = Background()
        self._positions, self._paused, self._stopped = {}, set(), {}
        # librdkafka wants a group's name, and never speaks of it as long as nothing is committed.
        options = {**_consumer_options(settings, self._background), "group.id": f"riskstream-reader-{uuid.uuid4().hex}"}
        with translating("connecting to Kafka"):
            self._vendor = Consumer(options, logger=LOGGER)
        wait_connected(self._vendor, settings, self._background)

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """TopicError if a topic or a partition does not exist."""
        for partition in positions:
            self._topics.require(*partition)
        with translating("assigning"):
            self._vendor.unassign()
            self._positions = dict(positions)
            self._stopped.clear()
            if positions:
                self._vendor.assign([VendorPartition(*partition, offset) for partition, offset in positions.items()])

    def position(self, partition: TopicPartition) -> int:
        if partition not in self._positions:
            raise PartitionLostError(f"{_name(partition)} is not assigned")
        return self._positions[partition]

    def poll(self, max_records: int, timeout_ms: int) -> _Records:
        deadline = time.monotonic() + timeout_ms / 1000
        while True:
            with translating("reading"):
                taken, problem = self._take(max_records, max(timeout_ms, 0))
            if problem is not None:
                for partition, records in taken.items():
                    self._seek(partition, records[0].offset)
                raise problem
            timeout_ms = int((deadline - time.monotonic()) * 1000)
            # An end of a partition is news, too: whoever waits for a position must not wait for a record.
            if taken or timeout_ms <= 0:
                return taken

    def offset_for_time(self, partition: TopicPartition, timestamp_ms: int) -> int | None:
        with self._asking("looking for a time in", partition):
            (found,) = self._vendor.offsets_for_times(
                [VendorPartition(*partition, max(0, timestamp_ms))], timeout=self._timeout_s
            )
            if found.error is not None:
                raise KafkaException(found.error)
        return None if found.offset in (OFFSET_END, -1) else int(found.offset)

    def close(self) -> None:
        with translating("closing a reader"):
            self._vendor.close()


def _metadata(answer: VendorPartition) -> str | None:
    """What was committed, and perhaps more: librdkafka ends it with no NUL where another client has committed it,
    and confluent-kafka reads on to the next one, over bytes that may be no UTF-8.
    """
    try:
        return cast(str | None, answer.metadata)
    except UnicodeDecodeError as error:
        return bytes(error.object[: error.start]).decode()


def _own(partitions: Iterable[VendorPartition]) -> list[TopicPartition]:
    return [TopicPartition(partition.topic, partition.partition) for partition in partitions]


def _name(partition: TopicPartition) -> str:
    return f"{partition[0]}-{partition[1]}"
