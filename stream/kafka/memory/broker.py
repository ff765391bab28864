"""A Kafka cluster in this process's memory: topics, transactions, consumer groups.

Several consumers and producers may share one broker, in one thread or in many. Nothing blocks here
except where a call says so.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from stream.clock import Clock, SystemClock
from stream.errors import FencedError, TopicError, TurnAborted
from stream.kafka.memory.group import Group, MemoryGroupMetadata
from stream.kafka.memory.log import PartitionLog
from stream.kafka.partitioner import partition_for
from stream.kafka.port import CommittedOffset, Headers, TopicDescription, TopicPartition


@dataclass(slots=True)
class _Topic:
    description: TopicDescription
    logs: list[PartitionLog]


@dataclass(slots=True)
class _Transaction:
    """The state of one transactional id."""

    epoch: int = 0
    timeout_s: float = 60.0
    began: float | None = None
    logs: list[PartitionLog] = field(default_factory=list)
    groups: set[str] = field(default_factory=set)


class MemoryBroker:
    """Topics, transactions and groups. `clock` stamps records that come without a timestamp."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._topics: dict[str, _Topic] = {}
        self._transactions: dict[str, _Transaction] = {}
        self._groups: dict[str, Group] = {}
        self._round_robin = itertools.count()
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self._waiting = 0

    # Topics

    def create_topic(
        self, name: str, *, partitions: int, replication_factor: int = 1, config: Mapping[str, str] | None = None
    ) -> bool:
        """False if it exists already."""
        with self.lock:
            if name in self._topics:
                return False
            description = TopicDescription(name, partitions, replication_factor, dict(config or {}))
            logs = [PartitionLog(TopicPartition(name, index)) for index in range(partitions)]
            self._topics[name] = _Topic(description, logs)
            return True

    def describe(self, name: str) -> TopicDescription | None:
        topic = self._topics.get(name)
        return None if topic is None else topic.description

    def log(self, partition: TopicPartition) -> PartitionLog:
        """TopicError if there is no such topic or partition."""
        name, index = partition
        topic = self._topics.get(name)
        if topic is None:
            raise TopicError(f"topic {name} does not exist: riskstream topics create")
        if not 0 <= index < len(topic.logs):
            raise TopicError(f"topic {name} has {len(topic.logs)} partitions, there is no partition {index}")
        return topic.logs[index]

    def delete_before(self, partition: TopicPartition, offset: int) -> None:
        """What retention does: drops the records below the offset."""
        with self.lock:
            self.log(partition).delete_before(offset)

    # Records

    def append(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Headers = (),
        partition: int | None = None,
        timestamp_ms: int | None = None,
    ) -> None:
        """One record outside any transaction."""
        with self.lock:
            self._choose_log(topic, key, partition).append(
                self._clock.now_ms() if timestamp_ms is None else timestamp_ms, key, value, headers
            )
            self.notify()

    def extend(self, topic: str, records: Iterable[tuple[bytes, bytes | None, int]]) -> None:
        """Many records (key, value, timestamp in ms) outside any transaction: one lock for all."""
        with self.lock:
            for key, value, timestamp_ms in records:
                self._choose_log(topic, key, None).append(timestamp_ms, key, value, ())
            self.notify()

    def _choose_log(self, topic: str, key: bytes | None, partition: int | None) -> PartitionLog:
        known = self._topics.get(topic)
        if known is None or (partition is not None and not 0 <= partition < len(known.logs)):
            return self.log(TopicPartition(topic, partition or 0))  # which says what is missing
        logs = known.logs
        if partition is None:
            partition = next(self._round_robin) % len(logs) if key is None else partition_for(key, len(logs))
        return logs[partition]

    # Transactions

    def init_transactions(self, transactional_id: str, timeout_ms: int) -> int:
        """Fences earlier producers of the id, aborts their open transaction; returns the new epoch."""
        with self.lock:
            transaction = self._transactions.setdefault(transactional_id, _Transaction())
            self._end(transactional_id, transaction, committed=False)
            transaction.epoch += 1
            transaction.timeout_s = timeout_ms / 1000
            return transaction.epoch

    def begin(self, transactional_id: str, epoch: int) -> None:
        with self.lock:
            self._fenced(transactional_id, epoch).began = time.monotonic()

    def append_in_transaction(
        self,
        transactional_id: str,
        epoch: int,
        records: Iterable[tuple[str, bytes | None, bytes | None, Headers, int | None, int | None]],
    ) -> None:
        """Records (topic, value, key, headers, partition, timestamp): one lock for all of them."""
        with self.lock:
            transaction = self._ongoing(transactional_id, epoch)
            now_ms = self._clock.now_ms()
            for topic, value, key, headers, partition, timestamp_ms in records:
                log = self._choose_log(topic, key, partition)
                stamp = now_ms if timestamp_ms is None else timestamp_ms
                offset = log.append(stamp, key, value, headers)
                if (offsets := log.open.get(transactional_id)) is None:
                    log.open[transactional_id] = [offset]
                    transaction.logs.append(log)
                else:
                    offsets.append(offset)

    def send_offsets(
        self,
        transactional_id: str,
        epoch: int,
        offsets: Mapping[TopicPartition, CommittedOffset],
        metadata: MemoryGroupMetadata,
    ) -> None:
        with self.lock:
            transaction = self._ongoing(transactional_id, epoch)
            group = self.group(metadata.group)
            group.check_metadata(metadata)
            group.pending.setdefault(transactional_id, {}).update(offsets)
            group.older = None
            transaction.groups.add(group.name)

    def end_transaction(self, transactional_id: str, epoch: int, *, committed: bool) -> None:
        with self.lock:
            transaction = self._fenced(transactional_id, epoch)
            if committed and transaction.began is None:
                raise TurnAborted(f"the transaction of {transactional_id} is no longer open")
            self._end(transactional_id, transaction, committed=committed)

    def _fenced(self, transactional_id: str, epoch: int) -> _Transaction:
        transaction = self._transactions.get(transactional_id)
        if transaction is None or transaction.epoch != epoch:
            raise FencedError(f"another producer has taken the transactional id {transactional_id}")
        return transaction

    def _ongoing(self, transactional_id: str, epoch: int) -> _Transaction:
        transaction = self._fenced(transactional_id, epoch)
        if transaction.began is None:
            raise TurnAborted(f"the transaction of {transactional_id} is no longer open")
        return transaction

    def _end(self, transactional_id: str, transaction: _Transaction, *, committed: bool) -> None:
        for log in transaction.logs:
            log.end_transaction(transactional_id, committed=committed)
        for name in transaction.groups:
            group = self.group(name)
            offsets = group.pending.pop(transactional_id, {})
            if committed:
                group.offsets.update(offsets)
        transaction.logs.clear()
        transaction.groups.clear()
        transaction.began = None
        self.notify()

    def abort_expired(self) -> None:
        """Aborts transactions that have been open for longer than their timeout. With the lock held."""
        now = time.monotonic()
        for transactional_id, transaction in self._transactions.items():
            if transaction.began is not None and now - transaction.began > transaction.timeout_s:
                self._end(transactional_id, transaction, committed=False)

    # Groups

    def group(self, name: str) -> Group:
        return self._groups.setdefault(name, Group(name))

    def expel(self, group: str, worker_id: str) -> None:
        """What the broker does when a member's session times out: its partitions go to the others."""
        with self.lock:
            self.group(group).leave(worker_id)
            self.notify()

    def rebalance(self, group: Group) -> None:
        """Removes expired members and ends the rebalance if all others have rejoined. With the lock held."""
        group.expire(time.monotonic())
        if group.preparing:
            group.try_complete({name: len(topic.logs) for name, topic in self._topics.items()})
            self.notify()

    def last_committed(
        self, group: str, partitions: Iterable[TopicPartition]
    ) -> Mapping[TopicPartition, CommittedOffset]:
        with self.lock:
            known = self.group(group)
            found = {TopicPartition(*partition): known.committed(partition) for partition in partitions}
            return {partition: offset for partition, offset in found.items() if offset is not None}

    def is_abandoned(self, transactional_id: str, group: str, worker_id: str) -> bool:
        """See `stream.kafka.port.Admin`."""
        with self.lock:
            known = self.group(group)
            known.expire(time.monotonic())
            transaction = self._transactions.get(transactional_id)
            if transaction is None or worker_id in known.members:
                return False
            return bool(transaction.logs or transaction.groups)

    # Waiting

    def notify(self) -> None:
        """Wakes those who wait for a change. With the lock held."""
        if self._waiting:
            self._changed.notify_all()

    def wait_until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Blocks, with the lock held but released meanwhile, until done() or the timeout; returns done()."""
        deadline = time.monotonic() + timeout_s
        self._waiting += 1
        try:
            while not done():
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return False
                self.abort_expired()
                # In slices: time alone may expire a transaction or a member.
                self._changed.wait(min(remaining, 0.05))
            return True
        finally:
            self._waiting -= 1
