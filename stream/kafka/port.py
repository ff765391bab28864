"""What the engine asks of a Kafka client. Three implementations pass one contract suite:
`kafka_python` (the default client), `confluent` (the fast one) and `memory` (the in-memory twin).

Vendor exceptions never cross this port: they are raised as `stream.errors` classes
(FencedError, NotAuthorisedError, TopicError, TurnAborted for an abortable transaction,
UnavailableError after the client's own retries).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

Headers = Sequence[tuple[str, bytes]]


class TopicPartition(NamedTuple):
    """One partition of one topic. Equal to, and hashes like, a plain tuple."""

    topic: str
    partition: int


class CommittedOffset(NamedTuple):
    """The first offset not yet done, and the metadata string that was committed with it."""

    offset: int
    metadata: str


KeyedValue = tuple[bytes | None, bytes | None, Headers]
"""What is produced to one partition: key, value, headers."""


class Record(Protocol):
    """A consumed record. The vendor's own object serves, if it has these attributes."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int:
        """Kafka's timestamp, milliseconds since the epoch."""
        ...

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Headers: ...


class RebalanceListener(Protocol):
    """Called from inside `Consumer.poll`, on the caller's thread."""

    def on_assigned(self, partitions: Sequence[TopicPartition]) -> None: ...
    def on_revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Still the owner: may flush and commit."""
        ...

    def on_lost(self, partitions: Sequence[TopicPartition]) -> None:
        """No longer the owner: must not commit, must not write."""
        ...


class GroupMetadata(Protocol):
    """Opaque: what `Producer.send_offsets` needs to be fenced by the group's generation."""


class Consumer(Protocol):
    """A member of a consumer group that reads committed records only and never commits by itself.

    Range assignor, static membership when `group_instance_id` is given. A partition without a
    committed offset starts at its first offset.
    """

    def subscribe(self, topics: Sequence[str], listener: RebalanceListener) -> None: ...

    def poll(self, max_records: int, timeout_ms: int) -> Mapping[TopicPartition, Sequence[Record]]:
        """Blocks up to `timeout_ms`. Records in offset order per partition. Runs the listener."""
        ...

    def assignment(self) -> frozenset[TopicPartition]: ...
    def position(self, partition: TopicPartition) -> int:
        """The next offset that poll would return (past control records already fetched)."""
        ...

    def seek(self, partition: TopicPartition, offset: int) -> None: ...
    def pause(self, partitions: Iterable[TopicPartition]) -> None: ...
    def resume(self, partitions: Iterable[TopicPartition]) -> None: ...
    def committed(self, partition: TopicPartition, *, timeout_ms: int | None = None) -> CommittedOffset | None:
        """Blocks. Waits for a pending transaction of the partition's former owner.

        UnavailableError when it still hangs after `timeout_ms`; None: after it must have timed out.
        """
        ...

    def first_offset(self, partition: TopicPartition) -> int: ...
    def end_offset(self, partition: TopicPartition) -> int:
        """Last stable offset now. Blocks for one request."""
        ...

    def known_end_offset(self, partition: TopicPartition) -> int | None:
        """The end that the last fetch reported, without a request; None before the first fetch."""
        ...

    def group_metadata(self) -> GroupMetadata: ...
    def close(self, *, leave_group: bool = True) -> None:
        """With `leave_group` False a static member keeps its place until the session times out."""
        ...


class Producer(Protocol):
    """A transactional, idempotent producer (acks=all)."""

    def init_transactions(self) -> None:
        """Fences every older producer of the same transactional id and ends its open transaction."""
        ...

    def begin(self) -> None: ...
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
        """Queues; a delivery failure surfaces in `commit`."""
        ...

    def produce_all(self, topic: str, partition: int, messages: Sequence[KeyedValue]) -> None:
        """As `produce` for each, in order, at one time; cheaper than that where the client can."""
        ...

    def send_offsets(self, offsets: Mapping[TopicPartition, CommittedOffset], group: GroupMetadata) -> None: ...
    def commit(self) -> None:
        """Blocks until records and offsets are visible together. TurnAborted: call `abort`."""
        ...

    def abort(self) -> None: ...
    def close(self) -> None: ...


class PlainProducer(Protocol):
    """An idempotent producer without transactions: simulator, replay, redrive."""

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
        """Queues; blocks while the client's buffer is full. Keyed records use Kafka's murmur2."""
        ...

    def flush(self) -> None:
        """Blocks until all queued records are acknowledged; raises if one was not."""
        ...

    def close(self) -> None: ...


class Reader(Protocol):
    """Reads given partitions outside any group, committed records only: restore, audit, alerts."""

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """Replaces the assignment; each partition starts at the offset given."""
        ...

    def poll(self, max_records: int, timeout_ms: int) -> Mapping[TopicPartition, Sequence[Record]]: ...
    def position(self, partition: TopicPartition) -> int: ...
    def first_offset(self, partition: TopicPartition) -> int: ...
    def end_offset(self, partition: TopicPartition) -> int: ...
    def offset_for_time(self, partition: TopicPartition, timestamp_ms: int) -> int | None:
        """First offset whose record timestamp is at or after the time; None if there is none."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """What the cluster says of one topic."""

    name: str
    partitions: int
    replication_factor: int
    config: Mapping[str, str]


class Admin(Protocol):
    """Questions and commands outside the data path. All block."""

    def partition_counts(self, names: Sequence[str]) -> Mapping[str, int]:
        """Partitions of the topics that exist. Needs the right Describe alone, which Read and Write imply."""
        ...

    def describe_topics(self, names: Sequence[str]) -> Mapping[str, TopicDescription]:
        """Only the topics that exist are in the answer. Needs the right DescribeConfigs too."""
        ...

    def create_topic(self, name: str, *, partitions: int, replication_factor: int, config: Mapping[str, str]) -> bool:
        """False if it exists already."""
        ...

    def broker_ids(self) -> Sequence[int]: ...
    def last_committed(
        self, group: str, partitions: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, CommittedOffset]:
        """The group's offsets as they are now, without waiting for pending transactions."""
        ...

    def is_abandoned(self, transactional_id: str, group: str, worker_id: str) -> bool:
        """Whether a transaction of this id is open while the worker is no member of the group: it died, or is paused.

        Until somebody ends it, readers of committed records wait at its records. True also where the broker
        cannot say whether one is open.
        """
        ...

    def fence(self, transactional_id: str) -> None:
        """Ends the open transaction of a producer that died, and fences it if it did not."""
        ...

    def close(self) -> None: ...


class KafkaClient(Protocol):
    """The factory that app.py hands to the engine: one per process, one set of settings."""

    def consumer(self) -> Consumer: ...
    def producer(self, transactional_id: str) -> Producer: ...
    def plain_producer(self) -> PlainProducer: ...
    def reader(self) -> Reader: ...
    def admin(self) -> Admin: ...
