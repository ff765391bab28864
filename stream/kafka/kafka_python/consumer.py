"""Consumer and reader on kafka-python 3.0.

kafka-python runs a rebalance listener on its IO thread, where no client call may be made and where
heartbeats would stop. The engine's listener runs on the caller's thread instead, inside `poll`:

* revoked: the vendor's callback refuses at first, which makes the vendor's poll give up the join
  before it has sent anything. The engine's listener then flushes and commits, still a member with
  heartbeats going on, and the next join is let through.
* assigned, lost: the callback only takes a note; the engine's listener runs when the vendor's poll
  comes back, before a record of the new partitions is handed out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import kafka.errors as vendor
from kafka import KafkaConsumer
from kafka import TopicPartition as VendorPartition
from kafka.consumer.subscription_state import ConsumerRebalanceListener
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.coordinator.consumer import ConsumerCoordinator
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment
from kafka.structs import ConsumerGroupMetadata

from stream.config import KafkaSettings
from stream.errors import FencedError, PartitionLostError, UnavailableError
from stream.kafka.kafka_python.admin import clean_metadata, remove_static_member
from stream.kafka.kafka_python.connection import KnownTopics, common_options
from stream.kafka.kafka_python.errors import translated, translating
from stream.kafka.kafka_python.vendor_log import OnCallersThread
from stream.kafka.port import CommittedOffset, RebalanceListener, Record, TopicPartition

_MAX_PARTITION_FETCH_BYTES = 1_048_576
_NEWER_MS = 5
"""How long a poll that has records waits for those that have come since they were fetched."""
# The broker looks for transactions that have timed out at this interval
# (transaction.abort.timed.out.transaction.cleanup.interval.ms).
_BROKER_ABORT_SCAN_MS = 10_000

_Records = Mapping[TopicPartition, Sequence[Record]]


class _JoinInFlight:
    """Stands in for the vendor's task of a join; done only where there is nothing left to take from it."""

    def __init__(self, task: Any) -> None:
        self._task = task

    @property
    def is_done(self) -> bool:
        # To the vendor this error means that it has waited too long itself: it would wait for ever.
        return isinstance(self._task.exception, vendor.KafkaTimeoutError)

    def __await__(self) -> Any:
        return self._task.__await__()

    def add_callback(self, function: Any) -> None:
        self._task.add_callback(function)

    def add_errback(self, function: Any) -> None:
        self._task.add_errback(function)


class _PatientCoordinator(ConsumerCoordinator):  # type: ignore[misc]  # the vendor has no types
    """Takes the result of every join.

    A poll that times out leaves its join to the next one. kafka-python 3.0.12 throws the join away if it
    has finished in between, and starts another: with short polls a group may rebalance over and over.

    A member whose leader did not know of it is answered with no bytes at all, which the vendor cannot decode:
    it has no partitions then, and joins again.
    """

    _join: _JoinInFlight | None = None

    @property
    def _join_task(self) -> _JoinInFlight | None:
        return self._join

    @_join_task.setter
    def _join_task(self, task: Any) -> None:
        self._join = None if task is None else _JoinInFlight(task)

    async def _on_join_complete_async(self, generation: int, member_id: str, protocol: str, assignment: bytes) -> None:
        if not assignment:
            assignment = bytes(ConsumerProtocolAssignment(version=0, assigned_partitions=[], user_data=None).encode())
            self.request_rejoin()
        await super()._on_join_complete_async(generation, member_id, protocol, assignment)


class _Notes(ConsumerRebalanceListener):  # type: ignore[misc]
    """The vendor's callbacks, on its IO thread; the caller's thread waits in poll meanwhile."""

    def __init__(self) -> None:
        self.revocation_done = False
        self.assigned: list[VendorPartition] | None = None
        self.lost: list[VendorPartition] | None = None

    def on_partitions_revoked(self, revoked: Iterable[VendorPartition]) -> None:
        if revoked and not self.revocation_done:
            raise OnCallersThread

    def on_partitions_lost(self, lost: Iterable[VendorPartition]) -> None:
        # Lost between our flush and the join: nothing is held any more.
        if not self.revocation_done:
            self.lost = sorted(lost)
        self.revocation_done = True

    def on_partitions_assigned(self, assigned: Iterable[VendorPartition]) -> None:
        self.assigned = sorted(assigned)
        self.revocation_done = False


def _fetch_only_when_drained(fetcher: Any) -> None:
    """No request goes out while records of an earlier one lie there.

    The vendor asks for the partitions of which nothing lies there. Where those are idle, the broker holds the request
    until its wait is over, half a second, and no other is sent before. That happens where an answer comes in between
    the vendor's look at what is there and its request, and where a poll leaves records of one partition to the next.
    On the vendor's IO thread, which also takes the answers in.
    """
    chosen_by_vendor = fetcher._fetchable_partitions

    def fetchable() -> Sequence[VendorPartition]:
        if fetcher._completed_fetches or fetcher._next_partition_records:
            return []
        return cast(Sequence[VendorPartition], chosen_by_vendor())

    fetcher._fetchable_partitions = fetchable


def _consumer_options(settings: KafkaSettings) -> dict[str, Any]:
    return {
        **common_options(settings),
        # Also makes the offset fetch wait for a pending transaction of the partition's former owner.
        "isolation_level": "read_committed",
        "enable_auto_commit": False,
        # "earliest" would silently jump over records that retention has dropped.
        "auto_offset_reset": "none",
        "allow_auto_create_topics": False,
        "fetch_max_bytes": settings.fetch_max_bytes,
        "max_partition_fetch_bytes": min(settings.fetch_max_bytes, _MAX_PARTITION_FETCH_BYTES),
        "fetch_max_wait_ms": min(500, settings.request_timeout_ms // 2),
    }


class _Partitions:
    """Positions and offsets: what the consumer and the reader share."""

    _vendor: Any
    _topics: KnownTopics

    def position(self, partition: TopicPartition) -> int:
        with translating(f"reading the position of {_name(partition)}"):
            position = self._vendor.position(self._assigned(partition), timeout_ms=self._timeout_ms)
        if position is None:
            raise UnavailableError(f"reading the position of {_name(partition)}: Kafka does not answer")
        return int(position)

    def first_offset(self, partition: TopicPartition) -> int:
        return self._offset(partition, self._vendor.beginning_offsets)

    def end_offset(self, partition: TopicPartition) -> int:
        return self._offset(partition, self._vendor.end_offsets)

    def _offset(self, partition: TopicPartition, ask: Any) -> int:
        self._topics.require(*partition)
        with translating(f"asking for the offsets of {_name(partition)}"):
            answer = ask([VendorPartition(*partition)], timeout_ms=self._timeout_ms)
        return int(answer[VendorPartition(*partition)])

    def _assigned(self, partition: TopicPartition) -> VendorPartition:
        if partition not in self._vendor.assignment():
            raise PartitionLostError(f"{_name(partition)} is not assigned")
        return VendorPartition(*partition)

    @property
    def _timeout_ms(self) -> int:
        return int(self._vendor.config["request_timeout_ms"])


class KafkaPythonConsumer(_Partitions):
    """See `stream.kafka.port.Consumer`. Not thread-safe. `close` does not run the listener."""

    def __init__(self, settings: KafkaSettings, topics: KnownTopics) -> None:
        self._settings = settings
        self._topics = topics
        self._listener: RebalanceListener | None = None
        self._notes = _Notes()
        with translating("connecting to Kafka"):
            self._vendor = KafkaConsumer(
                **_consumer_options(settings),
                group_id=settings.group,
                group_instance_id=settings.worker_id,
                session_timeout_ms=settings.session_timeout_ms,
                heartbeat_interval_ms=settings.heartbeat_interval_ms,
                max_poll_interval_ms=settings.max_poll_interval_ms,
                partition_assignment_strategy=[RangePartitionAssignor],
            )
        # The vendor offers no way to pass a coordinator in.
        self._vendor._coordinator.__class__ = _PatientCoordinator
        _fetch_only_when_drained(self._vendor._fetcher)

    def subscribe(self, topics: Sequence[str], listener: RebalanceListener) -> None:
        """TopicError if one of the topics does not exist. Blocks for a request."""
        for topic in topics:
            self._topics.require(topic)
        self._listener = listener
        with translating("subscribing"):
            self._vendor.subscribe(list(topics), listener=self._notes)
            # A join without their metadata would be answered with an empty share, and soon done again.
            for topic in topics:
                self._vendor.partitions_for_topic(topic)

    def poll(self, max_records: int, timeout_ms: int) -> _Records:
        deadline = time.monotonic() + timeout_ms / 1000
        while True:
            lay_there = bool(self._vendor._fetcher._completed_fetches)
            records = self._vendor_poll(max_records, timeout_ms)
            if lay_there and records and not self._rebalanced():
                records = self._with_newer(records, max_records)
            if self._rebalanced():
                self._rewind(records)
                self._run_listener()
                records = {}
            timeout_ms = int((deadline - time.monotonic()) * 1000)
            if records or timeout_ms <= 0:
                return records

    def _rebalanced(self) -> bool:
        return self._notes.lost is not None or self._notes.assigned is not None

    def _with_newer(self, records: _Records, max_records: int) -> _Records:
        """Asks once more. The vendor asks the broker when what it had is taken, so that lay here since the last poll:
        a turn that takes nothing else is always a turn late (at 2,000 events/s 67 ms from end to end against 41).
        """
        room = max_records - sum(map(len, records.values()))
        if room <= 0:
            return records
        try:
            newer = self._vendor_poll(room, _NEWER_MS)
        except BaseException:
            self._rewind(records)
            raise
        return {tp: [*records.get(tp, ()), *newer.get(tp, ())] for tp in records.keys() | newer.keys()}

    def _vendor_poll(self, max_records: int, timeout_ms: int) -> _Records:
        self._check_not_fenced()
        self._let_go_of_drained_records()
        try:
            return cast(_Records, self._vendor.poll(timeout_ms=timeout_ms, max_records=max_records))
        except vendor.NoOffsetForPartitionError:
            # After the listener: it may have given these partitions positions of its own.
            self._run_listener()
            self._start_at_first_offset()
        except vendor.KafkaError as error:
            if isinstance(error, vendor.OffsetOutOfRangeError) and self._notes.assigned is not None:
                # The listener has not run yet: it decides, and what it neither pauses nor seeks fails again.
                return {}
            if not isinstance(error.__cause__, OnCallersThread):
                raise translated(error, "polling") from error
            self._notes.revocation_done = True
            self._listening().on_revoked(_own(sorted(self._vendor.assignment())))
        return {}

    def _let_go_of_drained_records(self) -> None:
        # What was fetched of a partition before it was paused comes back after `resume` only once this slot is
        # None, and an emptied one stays until another fetch completes: near the end of a log, never.
        fetcher = self._vendor._fetcher
        if fetcher._next_partition_records is not None and not fetcher._next_partition_records:
            fetcher._next_partition_records = None

    def _run_listener(self) -> None:
        notes = self._notes
        lost, notes.lost = notes.lost, None
        if lost is not None:
            self._listening().on_lost(_own(lost))
        assigned, notes.assigned = notes.assigned, None
        if assigned is not None:
            self._listening().on_assigned(_own(assigned))

    def _rewind(self, records: _Records) -> None:
        """Records that came with the assignment, or before an error, are fetched again: the listener runs first."""
        for partition, batch in records.items():
            if VendorPartition(*partition) in self._vendor.assignment():
                self._vendor.seek(VendorPartition(*partition), batch[0].offset)

    def _start_at_first_offset(self) -> None:
        with translating("finding the first offsets"):
            without = [
                partition
                for partition in self._vendor.assignment()
                if not self._has_position(partition) and self.committed(TopicPartition(*partition)) is None
            ]
            if without:
                for partition, offset in self._vendor.beginning_offsets(without, timeout_ms=self._timeout_ms).items():
                    self._vendor.seek(partition, offset)

    def _has_position(self, partition: VendorPartition) -> bool:
        return bool(self._vendor._subscription.assignment[partition].has_valid_position)

    def _check_not_fenced(self) -> None:
        # A heartbeat that learns that another member has taken the instance id only stops the heartbeats;
        # poll would go on reading as if nothing had happened.
        coordinator = self._vendor._coordinator
        if coordinator.stable() and not coordinator._heartbeat_enabled:
            raise FencedError(
                f"another consumer has joined the group with this kafka.worker_id, {self._settings.worker_id}"
            )

    def _listening(self) -> RebalanceListener:
        assert self._listener is not None  # no rebalance before subscribe
        return self._listener

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(_own(self._vendor.assignment()))

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._vendor.seek(self._assigned(partition), offset)

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        self._vendor.pause(*map(self._assigned, partitions))

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        self._vendor.resume(*map(self._assigned, partitions))

    def committed(self, partition: TopicPartition, *, timeout_ms: int | None = None) -> CommittedOffset | None:
        """By default UnavailableError when a pending transaction outlives its timeout and the broker's scan for it."""
        settings = self._settings
        if timeout_ms is None:
            timeout_ms = settings.request_timeout_ms + settings.transaction_timeout_ms + _BROKER_ABORT_SCAN_MS
        # A fetch that a short poll gave up on stays with the vendor, which would give its old answer now:
        # an offset from before the former owner's last commit.
        self._vendor._coordinator._offset_fetch_futures.clear()
        with translating(f"reading the committed offset of {_name(partition)}"):
            answer = self._vendor.committed(VendorPartition(*partition), metadata=True, timeout_ms=timeout_ms)
        return None if answer is None else CommittedOffset(answer.offset, clean_metadata(answer.metadata))

    def known_end_offset(self, partition: TopicPartition) -> int | None:
        highwater: int | None = self._vendor.highwater(self._assigned(partition))
        return highwater

    def group_metadata(self) -> ConsumerGroupMetadata:
        return self._vendor.group_metadata()

    def close(self, *, leave_group: bool = True) -> None:
        # Both callbacks would run on the IO thread; whoever closes has flushed already.
        self._notes.revocation_done = True
        was_member = bool(self._vendor.group_metadata().member_id)
        with translating("leaving the group"):
            self._vendor.close()
        if leave_group and was_member:
            # A static member never leaves by itself; this is what takes its place away at once.
            remove_static_member(self._settings)


class KafkaPythonReader(_Partitions):
    """See `stream.kafka.port.Reader`. Not thread-safe."""

    def __init__(self, settings: KafkaSettings, topics: KnownTopics) -> None:
        self._topics = topics
        with translating("connecting to Kafka"):
            self._vendor = KafkaConsumer(**_consumer_options(settings), group_id=None)
        _fetch_only_when_drained(self._vendor._fetcher)

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """TopicError if a topic or a partition does not exist."""
        for partition in positions:
            self._topics.require(*partition)
        # Assigning anew, also the same partitions, drops what was fetched for the old positions.
        self._vendor.unsubscribe()
        if positions:
            self._vendor.assign([VendorPartition(*partition) for partition in positions])
            for partition, offset in positions.items():
                self._vendor.seek(VendorPartition(*partition), offset)

    def poll(self, max_records: int, timeout_ms: int) -> _Records:
        with translating("reading"):
            return cast(_Records, self._vendor.poll(timeout_ms=timeout_ms, max_records=max_records))

    def offset_for_time(self, partition: TopicPartition, timestamp_ms: int) -> int | None:
        self._topics.require(*partition)
        asked = VendorPartition(*partition)
        with translating(f"looking for a time in {_name(partition)}"):
            answer = self._vendor.offsets_for_times({asked: max(0, timestamp_ms)}, timeout_ms=self._timeout_ms)
        found = answer[asked]
        return None if found is None else int(found.offset)

    def close(self) -> None:
        with translating("closing a reader"):
            self._vendor.close()


def _own(partitions: Iterable[VendorPartition]) -> list[TopicPartition]:
    return [TopicPartition(*partition) for partition in partitions]


def _name(partition: TopicPartition) -> str:
    return f"{partition[0]}-{partition[1]}"
