"""A consumer group: members, generations, the range assignor, committed offsets.

A rebalance, as one member sees it in its polls:

    STABLE --(a member joins, leaves or expires)--> PREPARING: each member revokes, then rejoins
    PREPARING --(all have rejoined)--> STABLE with the next generation: each member is told its share
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stream.errors import FencedError, PartitionLostError
from stream.kafka.port import CommittedOffset, TopicPartition

_member_ids = itertools.count(1)


@dataclass(frozen=True, slots=True)
class MemoryGroupMetadata:
    """Who commits: fenced by the group's generation, and by the instance id."""

    group: str
    instance_id: str
    member_id: int
    generation: int


@dataclass(slots=True)
class Member:
    """One static member."""

    instance_id: str
    member_id: int
    topics: Sequence[str]
    last_poll: float
    max_poll_interval_s: float
    rejoined: bool = True
    assignment: frozenset[TopicPartition] = frozenset()
    # Set when the consumer has closed without leaving: when its place is given away.
    expires: float | None = None


@dataclass(slots=True)
class Group:
    """All methods are called with the broker's lock held."""

    name: str
    generation: int = 0
    preparing: bool = False
    members: dict[str, Member] = field(default_factory=dict)
    offsets: dict[TopicPartition, CommittedOffset] = field(default_factory=dict)
    older: Mapping[TopicPartition, CommittedOffset] | None = None
    """After a crash of the broker: what its coordinator answers until something is written to it."""
    # Transactional id -> offsets that its open transaction will commit.
    pending: dict[str, dict[TopicPartition, CommittedOffset]] = field(default_factory=dict)

    def committed(self, partition: TopicPartition) -> CommittedOffset | None:
        return (self.offsets if self.older is None else self.older).get(partition)

    def join(self, instance_id: str, topics: Sequence[str], now: float, max_poll_interval_s: float) -> Member:
        """Takes the place of the instance id and fences its earlier holder.

        A static member that comes back with the same topics gets its share back without a rebalance.
        """
        known = self.members.get(instance_id)
        member = Member(instance_id, next(_member_ids), tuple(topics), now, max_poll_interval_s)
        self.members[instance_id] = member
        if known is not None and known.topics == member.topics and not self.preparing:
            member.assignment = known.assignment
        else:
            self._start_rebalance(member)
        return member

    def leave(self, instance_id: str) -> None:
        """The others rebalance; the former member learns it as a lost assignment."""
        if self.members.pop(instance_id, None) is not None:
            self._start_rebalance(None)

    def _start_rebalance(self, joining: Member | None) -> None:
        for member in self.members.values():
            if member is not joining and not self.preparing:
                member.rejoined = False
        self.preparing = True

    def check(self, member: Member) -> None:
        """FencedError if another consumer has taken the place, PartitionLostError if the place is gone."""
        current = self.members.get(member.instance_id)
        if current is None:
            raise PartitionLostError(f"{member.instance_id} is no longer a member of group {self.name}")
        if current is not member:
            raise FencedError(f"another consumer has joined group {self.name} as {member.instance_id}")

    def check_metadata(self, metadata: MemoryGroupMetadata) -> None:
        """As the broker checks offsets inside a transaction."""
        member = self.members.get(metadata.instance_id)
        if member is not None and member.member_id != metadata.member_id:
            raise FencedError(f"another consumer has joined group {self.name} as {metadata.instance_id}")
        if member is None or metadata.generation != self.generation:
            raise PartitionLostError(f"group {self.name} is at generation {self.generation}, not {metadata.generation}")

    def expire(self, now: float) -> None:
        """Removes members that closed without leaving, or that have not polled for too long."""
        for member in list(self.members.values()):
            closed = member.expires is not None and now >= member.expires
            stalled = member.expires is None and now - member.last_poll > member.max_poll_interval_s
            if closed or stalled:
                self.leave(member.instance_id)

    def try_complete(self, partitions: Mapping[str, int]) -> None:
        """Ends the rebalance once every member has rejoined."""
        if not self.preparing or not all(member.rejoined for member in self.members.values()):
            return
        self.preparing = False
        self.generation += 1
        for instance_id, share in assign_range(
            {member.instance_id: member.topics for member in self.members.values()}, partitions
        ).items():
            self.members[instance_id].assignment = share

    def has_pending(self, partition: TopicPartition) -> bool:
        return any(partition in offsets for offsets in self.pending.values())


def assign_range(
    subscriptions: Mapping[str, Sequence[str]], partitions: Mapping[str, int]
) -> dict[str, frozenset[TopicPartition]]:
    """Kafka's range assignor: per topic, members in order of their ids get consecutive runs of partitions."""
    shares: dict[str, set[TopicPartition]] = {member: set() for member in subscriptions}
    for topic in sorted({topic for topics in subscriptions.values() for topic in topics}):
        members = sorted(member for member, topics in subscriptions.items() if topic in topics)
        each, extra = divmod(partitions.get(topic, 0), len(members))
        start = 0
        for index, member in enumerate(members):
            stop = start + each + (index < extra)
            shares[member].update(TopicPartition(topic, partition) for partition in range(start, stop))
            start = stop
    return {member: frozenset(share) for member, share in shares.items()}
