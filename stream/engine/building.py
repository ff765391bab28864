"""Builds a state that nobody serves from yet, beside the workers of the group that go on with theirs.

Another spec_id, namespace or key secret is another state, and it begins empty. This folds the log as a restore does,
up to the offsets that the group has committed and never past them, and writes rows and W. A worker that then gets a
partition finds a checkpoint that is almost current: it replays the rest, and nothing is scored cold.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import structlog

from stream.clock import Clock
from stream.config import Settings
from stream.engine.flush import RowKeeper
from stream.engine.partition import CommitNote, Partition, Phase, builder_name
from stream.engine.restoring import Restorer
from stream.errors import ConfigError, StateLostError, UnavailableError
from stream.kafka.port import Admin, CommittedOffset, Reader, TopicPartition
from stream.state.store import Checkpoint, StateStore

_WAIT_S = 0.2


class CommittedOffsets:
    """What the group has committed, seen from outside the group (GroupOffsets)."""

    def __init__(self, reader: Reader, admin: Admin, group: str) -> None:
        self._reader, self._admin, self._group = reader, admin, group

    def first_offset(self, partition: TopicPartition) -> int:
        return self._reader.first_offset(partition)

    def committed(self, partition: TopicPartition, *, timeout_ms: int | None = None) -> CommittedOffset | None:
        """As it is now: a transaction that hangs over it concerns the workers, not what is committed."""
        return self._admin.last_committed(self._group, [partition]).get(partition)


class StateBuilder:
    """Brings the partitions of one state up to the group's committed offsets, round by round."""

    def __init__(
        self,
        settings: Settings,
        store: StateStore,
        keeper: RowKeeper,
        restorer: Restorer,
        offsets: CommittedOffsets,
        clock: Clock,
        partitions: int,
    ) -> None:
        """`restorer` claims under `builder_name(settings)`."""
        self._store, self._keeper, self._restorer, self._offsets = store, keeper, restorer, offsets
        self._settings, self._group, self._clock = settings, settings.kafka.group, clock
        self._partitions = {number: Partition(number) for number in range(partitions)}
        self.cold_until_ms = 0
        """Until when the scores of the workers to come will be flagged cold: the log lacks its beginning."""
        self._log = structlog.get_logger("riskstream.build")

    @property
    def positions(self) -> Mapping[int, Checkpoint | None]:
        """Partition -> W in the new state. A partition that a worker has taken over is missing."""
        return {number: partition.checkpoint for number, partition in self._partitions.items()}

    def check(self) -> None:
        """ConfigError when a worker serves from this state: claiming it would throw the worker back."""
        for number in self._partitions:
            owner = self._serving(number)
            if owner is not None:
                raise ConfigError(
                    f"partition {number}: {owner} serves from this state already, so there is nothing to build. Run "
                    f"this with the new version or bundle, whose spec_id differs, or with another redis.namespace"
                )

    def round(self, stop: threading.Event, tell: Callable[[int, int], None]) -> float:
        """Every partition once, up to what is committed when its turn comes. Blocks; returns the seconds it took.

        `tell(partition, remaining)` is called after each step. UnavailableError of the store is waited for.
        """
        began = self._clock.monotonic()
        for number in list(self._partitions):
            if self._serving(number) is not None:
                self._give_up(number)
                continue
            while not stop.is_set() and number in self._partitions and not self._step(number):
                tell(number, self._restorer.remaining(number))
                if self._restorer.remaining(number) == 0:
                    stop.wait(_WAIT_S)
        return self._clock.monotonic() - began

    def _step(self, number: int) -> bool:
        try:
            done = self._restorer.step(self._partitions[number], self._offsets, self._flush_all, self)
        except UnavailableError as error:
            self._log.warning("waiting", partition=number, error=str(error))
            return False
        except StateLostError as error:
            if self._serving(number) is not None:
                self._give_up(number)
            else:
                self._log.warning("partition starts over", partition=number, error=str(error))
                self._forget(number)
                self._partitions[number] = Partition(number)
            return False
        if done:
            self._partitions[number].phase = Phase.RUNNING
        return done

    def _serving(self, number: int) -> str | None:
        """The worker of the group that owns the partition of this state; None if there is none."""
        head = self._store.load_head(number)
        owner = head.owners[0] if head is not None and head.owners else ""
        return owner if owner.startswith(f"{self._group}-") else None

    def _give_up(self, number: int) -> None:
        self._log.info("a worker has taken over", partition=number)
        self._forget(number)
        del self._partitions[number]

    def _forget(self, number: int) -> None:
        self._restorer.forget(number)
        self._keeper.drop(number)

    def _flush_all(self) -> None:
        self._keeper.flush([p for p in self._partitions.values() if p.phase in (Phase.RESTORING, Phase.RUNNING)])

    def abort(self, offsets: Mapping[TopicPartition, CommittedOffset]) -> None:
        """The group's log of offsets is not ours, and its workers go on in any case (OffsetWriter)."""

    def commit(self, offsets: Mapping[TopicPartition, CommittedOffset]) -> None:
        """History is missing. The group's commits, where a worker notes it, are not ours: the owner's name says it."""
        for (_, number), offset in offsets.items():
            until = CommitNote.decode(offset.metadata).cold_until_ms
            if until > 0:
                self.cold_until_ms = max(self.cold_until_ms, until)
                partition, name = self._partitions[number], builder_name(self._settings, until)
                if partition.head is None or partition.head.owners[0] != name:
                    partition.head = self._store.claim(number, name, self._clock.now_ms())
