"""The port over a `MemoryBroker`: consumer, producers, reader, admin."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from stream.config import KafkaSettings
from stream.errors import FencedError, PartitionLostError, TurnAborted, UnavailableError
from stream.kafka.memory.broker import MemoryBroker
from stream.kafka.memory.group import Member, MemoryGroupMetadata
from stream.kafka.memory.log import MemoryRecord
from stream.kafka.port import (
    CommittedOffset,
    GroupMetadata,
    Headers,
    KeyedValue,
    RebalanceListener,
    TopicDescription,
    TopicPartition,
)

_Queued = tuple[str, bytes | None, bytes | None, Headers, int | None, int | None]
_Records = Mapping[TopicPartition, Sequence[MemoryRecord]]
_QUEUE_RECORDS = 256
_FENCE_TIMEOUT_MS = 60_000
# The position of a partition that waits for a pending transaction to settle its committed offset.
_UNKNOWN = -1


class MemoryKafka:
    """One worker's client. Several with their own `worker_id` may share a broker."""

    def __init__(self, broker: MemoryBroker, settings: KafkaSettings | None = None) -> None:
        self.broker = broker
        self._settings = settings or KafkaSettings()

    def consumer(self) -> MemoryConsumer:
        return MemoryConsumer(self.broker, self._settings)

    def producer(self, transactional_id: str) -> MemoryProducer:
        return MemoryProducer(self.broker, transactional_id, self._settings.transaction_timeout_ms)

    def plain_producer(self) -> MemoryPlainProducer:
        return MemoryPlainProducer(self.broker)

    def reader(self) -> MemoryReader:
        return MemoryReader(self.broker)

    def admin(self) -> MemoryAdmin:
        return MemoryAdmin(self.broker)


class _Positions:
    """Positions in some partitions, and polling from them in turn."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._positions: dict[TopicPartition, int] = {}
        self._known_ends: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()

    def position(self, partition: TopicPartition) -> int:
        self._require_assigned(partition)
        return self._positions[partition]

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._require_assigned(partition)
        self._positions[partition] = offset

    def first_offset(self, partition: TopicPartition) -> int:
        return self._broker.log(partition).first_offset

    def end_offset(self, partition: TopicPartition) -> int:
        with self._broker.lock:
            return self._broker.log(partition).last_stable_offset

    def _require_assigned(self, partition: TopicPartition) -> None:
        if partition not in self._positions:
            raise PartitionLostError(f"{partition[0]}-{partition[1]} is not assigned")

    def _fetch(self, max_records: int) -> dict[TopicPartition, Sequence[MemoryRecord]]:
        """Up to so many records, partition after partition; what was served goes to the back of the row."""
        found: dict[TopicPartition, Sequence[MemoryRecord]] = {}
        wanted = [(partition, self._broker.log(partition)) for partition in self._positions if self._is_open(partition)]
        # All before any: an error must not come after positions have moved.
        for partition, log in wanted:
            log.check(self._positions[partition])
        for partition, log in wanted:
            if max_records <= 0:
                break
            records, position = log.read(self._positions[partition], max_records)
            self._known_ends[partition] = log.next_offset
            if records:
                del self._positions[partition]
                found[partition] = records
                max_records -= len(records)
            self._positions[partition] = position
        return found

    def _fetch_or_wait(self, max_records: int, timeout_s: float) -> dict[TopicPartition, Sequence[MemoryRecord]]:
        with self._broker.lock:
            self._broker.abort_expired()
            found = self._fetch(max_records)
            if not found and timeout_s > 0:
                self._broker.wait_until(self._has_news, timeout_s)
                found = self._fetch(max_records)
            return found

    def _is_open(self, partition: TopicPartition) -> bool:
        return partition not in self._paused and self._positions[partition] >= 0

    def _has_news(self) -> bool:
        return any(
            self._broker.log(partition).last_stable_offset > position
            for partition, position in self._positions.items()
            if self._is_open(partition)
        )


class MemoryConsumer(_Positions):
    """See `stream.kafka.port.Consumer`. `close` does not run the listener."""

    def __init__(self, broker: MemoryBroker, settings: KafkaSettings) -> None:
        super().__init__(broker)
        self._settings = settings
        self._group = broker.group(settings.group)
        self._topics: Sequence[str] = ()
        self._listener: RebalanceListener | None = None
        self._member: Member | None = None
        self._generation = -1

    def subscribe(self, topics: Sequence[str], listener: RebalanceListener) -> None:
        for topic in topics:
            self._broker.log(TopicPartition(topic, 0))
        self._topics = tuple(topics)
        self._listener = listener

    def poll(self, max_records: int, timeout_ms: int) -> _Records:
        deadline = time.monotonic() + timeout_ms / 1000
        while True:
            settled = self._take_part()
            remaining_s = deadline - time.monotonic()
            if settled:
                found = self._fetch_or_wait(max_records, remaining_s)
                if found or remaining_s <= 0:
                    return found
            else:
                with self._broker.lock:
                    if not self._broker.wait_until(self._is_my_turn, remaining_s):
                        return {}

    def _take_part(self) -> bool:
        """Does what the group demands of this member now; False while it waits for the others.

        The listener runs without the broker's lock: it may commit, and wait for other threads.
        """
        listener = self._listener
        if listener is None:
            return True
        with self._broker.lock:
            member = self._current_member()
            must_revoke = member is not None and self._group.preparing and not member.rejoined
        if member is None:
            self._hand_back(listener.on_lost)
            member = self._join()
        elif must_revoke:
            self._hand_back(listener.on_revoked)
            with self._broker.lock:
                member.rejoined = True
        with self._broker.lock:
            member.last_poll = time.monotonic()
            self._broker.rebalance(self._group)
            if self._group.preparing:
                return False
            is_new = self._generation != self._group.generation
            if is_new:
                self._generation = self._group.generation
                self._positions = dict.fromkeys(sorted(member.assignment), _UNKNOWN)
        if is_new:
            listener.on_assigned(list(self._positions))
        with self._broker.lock:
            self._find_positions()
        return True

    def _current_member(self) -> Member | None:
        """Our place in the group; None if there is none, or no longer. FencedError if it was taken."""
        if self._member is not None:
            try:
                self._group.check(self._member)
            except PartitionLostError:
                self._member = None
        return self._member

    def _join(self) -> Member:
        with self._broker.lock:
            interval_s = self._settings.max_poll_interval_ms / 1000
            self._member = self._group.join(self._settings.worker_id, self._topics, time.monotonic(), interval_s)
            self._generation = -1
            self._broker.notify()
            return self._member

    def _hand_back(self, tell: Callable[[Sequence[TopicPartition]], None]) -> None:
        if self._positions:
            tell(sorted(self._positions))
        self._positions = {}
        self._known_ends.clear()
        self._paused.clear()

    def _find_positions(self) -> None:
        """Starts each new partition at its committed offset, unless a transaction that moves it is pending."""
        for partition, position in self._positions.items():
            if position == _UNKNOWN and not self._group.has_pending(partition):
                committed = self._group.committed(partition)
                first = self._broker.log(partition).first_offset
                self._positions[partition] = first if committed is None else committed.offset

    def _is_my_turn(self) -> bool:
        self._broker.rebalance(self._group)
        member = self._member
        return (
            not self._group.preparing
            or member is None
            or not member.rejoined
            or self._group.members.get(member.instance_id) is not member
        )

    def _has_news(self) -> bool:
        self._find_positions()
        self._broker.rebalance(self._group)
        member = self._member
        is_out = member is not None and self._group.members.get(member.instance_id) is not member
        moved = self._group.preparing or self._generation != self._group.generation
        return is_out or (member is not None and moved) or super()._has_news()

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self._positions)

    def position(self, partition: TopicPartition) -> int:
        self._require_assigned(partition)
        if self._positions[partition] == _UNKNOWN:
            self.committed(partition)
            with self._broker.lock:
                self._find_positions()
        return self._positions[partition]

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            self._require_assigned(partition)
            self._paused.add(TopicPartition(*partition))

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            self._require_assigned(partition)
            self._paused.discard(TopicPartition(*partition))

    def known_end_offset(self, partition: TopicPartition) -> int | None:
        return self._known_ends.get(partition)

    def committed(self, partition: TopicPartition, *, timeout_ms: int | None = None) -> CommittedOffset | None:
        if timeout_ms is None:
            timeout_ms = self._settings.transaction_timeout_ms + self._settings.request_timeout_ms
        timeout_s = timeout_ms / 1000
        with self._broker.lock:
            if not self._broker.wait_until(lambda: not self._group.has_pending(partition), timeout_s):
                raise UnavailableError(f"a transaction on {partition[0]}-{partition[1]} does not end")
            return self._group.committed(partition)

    def group_metadata(self) -> MemoryGroupMetadata:
        member_id = -1 if self._member is None else self._member.member_id
        return MemoryGroupMetadata(self._group.name, self._settings.worker_id, member_id, self._generation)

    def close(self, *, leave_group: bool = True) -> None:
        with self._broker.lock:
            member, self._member = self._member, None
            if member is not None and self._group.members.get(member.instance_id) is member:
                if leave_group:
                    self._group.leave(member.instance_id)
                else:
                    member.expires = time.monotonic() + self._settings.session_timeout_ms / 1000
                self._broker.notify()
            self._listener = None
            self._positions = {}


class MemoryProducer:
    """See `stream.kafka.port.Producer`."""

    def __init__(self, broker: MemoryBroker, transactional_id: str, timeout_ms: int) -> None:
        self._broker = broker
        self._id = transactional_id
        self._timeout_ms = timeout_ms
        self._epoch = 0
        self._in_transaction = False
        self._known: set[tuple[str, int | None]] = set()
        self._queue: list[_Queued] = []
        self._queue_limit = 1

    def init_transactions(self) -> None:
        self._epoch = self._broker.init_transactions(self._id, self._timeout_ms)
        self._in_transaction = False

    def begin(self) -> None:
        self._broker.begin(self._id, self._epoch)
        self._in_transaction = True
        # The first record goes out at once, as it would with Kafka: it holds back readers. The others may wait.
        self._queue_limit = 1

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
        if (topic, partition) not in self._known:
            self._broker.log(TopicPartition(topic, partition or 0))
            self._known.add((topic, partition))
        if not self._in_transaction:
            raise TurnAborted(f"producing to {topic}: no transaction is open")
        self._queue.append((topic, value, key, headers, partition, timestamp_ms))
        if len(self._queue) >= self._queue_limit:
            self._send()

    def produce_all(self, topic: str, partition: int, messages: Sequence[KeyedValue]) -> None:
        for key, value, headers in messages:
            self.produce(topic, value, key=key, headers=headers, partition=partition)

    def _send(self) -> None:
        queue, self._queue = self._queue, []
        self._queue_limit = _QUEUE_RECORDS
        if queue:
            self._broker.append_in_transaction(self._id, self._epoch, queue)

    def send_offsets(self, offsets: Mapping[TopicPartition, CommittedOffset], group: GroupMetadata) -> None:
        assert isinstance(group, MemoryGroupMetadata)  # of this client's own consumer
        self._broker.send_offsets(self._id, self._epoch, offsets, group)

    def commit(self) -> None:
        self._send()
        self._broker.end_transaction(self._id, self._epoch, committed=True)
        self._in_transaction = False

    def abort(self) -> None:
        self._queue = []
        if self._in_transaction:
            self._broker.end_transaction(self._id, self._epoch, committed=False)
            self._in_transaction = False

    def close(self) -> None:
        """Ends an open transaction."""
        with contextlib.suppress(FencedError):
            self.abort()


class MemoryPlainProducer:
    """See `stream.kafka.port.PlainProducer`. Records are visible at once."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

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
        self._broker.append(topic, value, key=key, headers=headers, partition=partition, timestamp_ms=timestamp_ms)

    def flush(self) -> None:
        """Nothing is ever queued."""

    def close(self) -> None:
        """Nothing to close."""


class MemoryReader(_Positions):
    """See `stream.kafka.port.Reader`."""

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        for partition in positions:
            self._broker.log(partition)
        self._positions = {TopicPartition(*partition): offset for partition, offset in positions.items()}

    def poll(self, max_records: int, timeout_ms: int) -> _Records:
        return self._fetch_or_wait(max_records, timeout_ms / 1000)

    def offset_for_time(self, partition: TopicPartition, timestamp_ms: int) -> int | None:
        with self._broker.lock:
            return self._broker.log(partition).offset_for_time(timestamp_ms)

    def close(self) -> None:
        self._positions = {}


class MemoryAdmin:
    """See `stream.kafka.port.Admin`."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    def partition_counts(self, names: Sequence[str]) -> Mapping[str, int]:
        return {name: description.partitions for name, description in self.describe_topics(names).items()}

    def describe_topics(self, names: Sequence[str]) -> Mapping[str, TopicDescription]:
        descriptions = {name: self._broker.describe(name) for name in names}
        return {name: description for name, description in descriptions.items() if description is not None}

    def create_topic(self, name: str, *, partitions: int, replication_factor: int, config: Mapping[str, str]) -> bool:
        return self._broker.create_topic(
            name, partitions=partitions, replication_factor=replication_factor, config=config
        )

    def broker_ids(self) -> Sequence[int]:
        return [1]

    def last_committed(
        self, group: str, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, CommittedOffset]:
        return self._broker.last_committed(group, partitions)

    def is_abandoned(self, transactional_id: str, group: str, worker_id: str) -> bool:
        return self._broker.is_abandoned(transactional_id, group, worker_id)

    def fence(self, transactional_id: str) -> None:
        self._broker.init_transactions(transactional_id, _FENCE_TIMEOUT_MS)

    def close(self) -> None:
        """Nothing to close."""
