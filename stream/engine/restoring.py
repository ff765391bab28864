"""From an assigned partition to a running one: fence the former owner, plan, replay, flush."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog

from stream.clock import Clock
from stream.config import Settings
from stream.engine.flush import ACCOUNT_EVENTS_PER_TURN, ACCOUNT_LABELS_PER_TURN, RowKeeper, no_fault
from stream.engine.inputs import within_limit
from stream.engine.label_places import LabelPlaces
from stream.engine.partition import CommitNote, Partition, Phase, cold_of_builders, transactional_id
from stream.engine.pipeline import Pipeline
from stream.engine.restore import Log, Plan, Replay, Step, plan
from stream.errors import CheckpointAheadError, UnavailableError
from stream.features.batch import EventBatch, LabelBatch
from stream.features.pool import ArenaFullError
from stream.kafka.port import CommittedOffset, KafkaClient, TopicPartition
from stream.metrics import Metrics
from stream.state.store import Checkpoint, StateStore

_DAY_MS = 86_400_000
_AHEAD_MS, _ASK_AGAIN_MS = 5_000, 200
"""How long a committed offset behind the checkpoint is asked for again before it is refused."""
_PENDING_WAIT_MS = 500
"""How long the committed offset may hang on a transaction before its producer is taken for dead."""


class OffsetWriter(Protocol):
    """Transactions of offsets alone. TurnAborted when Kafka is away, or this worker no longer in the group."""

    def commit(self, offsets: Mapping[TopicPartition, CommittedOffset]) -> None: ...
    def abort(self, offsets: Mapping[TopicPartition, CommittedOffset]) -> None:
        """Writes and takes back: nothing changes, but whoever asks afterwards hears of all that was written before."""


class GroupOffsets(Protocol):
    """Where a partition's log begins, and what the group has committed: a worker's consumer, as far as needed here."""

    def first_offset(self, partition: TopicPartition) -> int: ...
    def committed(self, partition: TopicPartition, *, timeout_ms: int | None = None) -> CommittedOffset | None: ...


@dataclass(frozen=True, slots=True)
class _Origin:
    """What Kafka knows of a partition: its log, C (None: the group never committed), and C's note."""

    log: Log
    committed: Checkpoint | None
    note: CommitNote


@dataclass(slots=True)
class _Job:
    """A restore under way: first it may have to look for the places of old labels, then it replays."""

    plan: Plan
    origin: _Origin
    places: LabelPlaces | None = None
    replay: Replay | None = None

    @property
    def remaining(self) -> int:
        """Offsets still to replay."""
        return self.replay.remaining if self.replay is not None else sum(self.plan.end) - sum(self.plan.start)

    def close(self) -> None:
        for part in (self.places, self.replay):
            if part is not None:
                part.close()


class Restorer:
    """Takes partitions through RESTORING. Blocks at most for one poll of the log per step."""

    def __init__(
        self,
        settings: Settings,
        client: KafkaClient,
        store: StateStore,
        keeper: RowKeeper,
        pipeline: Pipeline,
        metrics: Metrics,
        clock: Clock,
        *,
        scores_aligned: bool,
        owner: str | None = None,
        fault: Callable[[str], None] = no_fault,
    ) -> None:
        """`scores_aligned`: a score lies in the partition of its event, so a partition's scores can be found.

        `owner`: the name under which partitions are claimed; None: the worker's transactional id.
        """
        self._settings, self._client, self._store = settings, client, store
        self._scores_aligned = scores_aligned
        self._keeper, self._pipeline, self._metrics, self._clock = keeper, pipeline, metrics, clock
        self._transactional_id = owner or transactional_id(settings)
        self._fault = fault
        self._jobs: dict[int, _Job] = {}
        self._ended: set[str] = set()
        self._is_member = False
        self._ahead: dict[int, tuple[int, int]] = {}
        """Partitions with W > C: since when, and when to ask again, in ms."""
        self._log = structlog.get_logger("riskstream.restore")

    def next_round(self) -> None:
        """A step of each partition follows. What is found out once a round: whether a former owner is gone, whatever it
        owned, and whether this worker is in the group."""
        self._ended.clear()
        self._is_member = False

    def forget(self, number: int) -> None:
        """The partition is gone, or begins again."""
        self._ahead.pop(number, None)
        job = self._jobs.pop(number, None)
        if job is not None:
            job.close()

    def remaining(self, number: int) -> int:
        """Offsets still to replay of a partition."""
        job = self._jobs.get(number)
        return job.remaining if job is not None else 0

    def target(self, number: int) -> Checkpoint | None:
        """The committed offset to which a partition is being restored, once it is known."""
        job = self._jobs.get(number)
        return job.plan.end if job is not None else None

    def step(
        self,
        partition: Partition,
        consumer: GroupOffsets,
        flush_all: Callable[[], None],
        offsets: OffsetWriter,
    ) -> bool:
        """One step; True when the partition stands at its committed offset, rows flushed.

        `flush_all` flushes every partition's rows: all stand at their `done` between two portions.
        `offsets` commits a new note beside the offsets as they are. UnavailableError (of the store), TurnAborted:
        call again later. CheckpointAheadError, LogTruncatedError: refused.
        """
        if partition.number not in self._jobs and not self._begin(partition, consumer, offsets):
            return False
        job = self._jobs[partition.number]
        if job.replay is None:
            self._find_places(partition, job)
            return False
        try:
            for step in job.replay.steps():
                self._replay(partition, step, flush_all)
                self._fault("restore:after_step")
        except UnavailableError:
            # The rest of what was read is not folded: it must come again.
            job.replay.restart(partition.done)
            raise
        self._metrics.restore_remaining.labels(str(partition.number)).set(job.remaining)
        if not job.replay.finished:
            return False
        if partition.checkpoint != partition.done:
            flush_all()
        self._log.info("restored", partition=partition.number, kind=job.plan.kind, position=list(partition.done))
        self.forget(partition.number)
        return True

    def untouched(self, partition: Partition, consumer: GroupOffsets, offsets: OffsetWriter) -> bool:
        """Whether a parked partition comes back as it was left: nobody committed, the store is the same."""
        origin = self._origin(partition.number, consumer, offsets, ())
        if origin is None or (origin.committed or origin.log.first) != partition.done:
            return False
        return self._store.load_head(partition.number) == partition.head

    def begin_degraded(self, partition: Partition, consumer: GroupOffsets, offsets: OffsetWriter) -> bool:
        """The store is away and the policy is not to wait: stand at C without history. TurnAborted: again later."""
        origin = self._origin(partition.number, consumer, offsets, ())
        if origin is None:
            return False
        partition.head = None
        partition.done = origin.committed or origin.log.first
        partition.pairs, partition.base = list(origin.note.pairs), origin.note.base
        partition.cold_until_ms = origin.note.cold_until_ms
        partition.degraded = True
        return True

    def _begin(
        self,
        partition: Partition,
        consumer: GroupOffsets,
        offsets: OffsetWriter,
    ) -> bool:
        """Claims and plans; False when Kafka cannot say yet where the partition stands.

        The claim comes first: from then on nobody else can change what this partition loads, and W, which is
        read with it, cannot be newer than the committed offset that is read after it. A worker that was expelled
        from the group claims nothing: it would take the store from the owner.
        """
        number = partition.number
        now_ms = self._clock.now_ms()
        if now_ms < self._ahead.get(number, (0, 0))[1]:
            return False
        if partition.head is None:
            self._require_member(number, offsets)
            partition.head = self._store.claim(number, self._transactional_id, now_ms)
            self._fault("restore:after_claim")
        head = partition.head
        origin = self._origin(number, consumer, offsets, head.owners)
        if origin is None:
            return False
        checkpoint = head.checkpoint
        horizon = self._horizon(origin.log) if checkpoint is None else origin.log.first
        try:
            chosen = plan(origin.log, origin.committed, origin.note, checkpoint, horizon, self._settings.state, now_ms)
        except CheckpointAheadError:
            # A coordinator that was elected twice in a row was seen to serve before it had read all of its log.
            since_ms, _ = self._ahead.setdefault(number, (now_ms, 0))
            if now_ms - since_ms >= _AHEAD_MS:
                raise
            self._ahead[number] = since_ms, now_ms + _ASK_AGAIN_MS
            self._log.warning("the committed offset is behind the checkpoint: asking again", partition=number)
            return False
        self._ahead.pop(number, None)
        cold = max(chosen.cold_until_ms, cold_of_builders(head.owners))
        if cold > origin.note.cold_until_ms:
            # Before there is a checkpoint, after which nobody would know that history is missing.
            note = CommitNote(self._transactional_id, chosen.note.base, chosen.note.pairs, cold, partition.of)
            offsets.commit(_offsets(origin.log, chosen.end, note))
        if chosen.clear:
            self._store.clear(number, partition.head)
        partition.phase = Phase.RESTORING
        partition.done = chosen.start
        partition.cold_until_ms = cold
        self._metrics.restores.labels(chosen.kind).inc()
        self._metrics.restoring.labels(str(number)).set(1)
        job = self._jobs[number] = _Job(chosen, origin)
        if self._scores_aligned and chosen.start.labels < chosen.note.base.labels:
            scores = TopicPartition(self._settings.topics.scores, number)
            job.places = LabelPlaces(
                origin.log, chosen, origin.note, scores, self._client.reader(), self._settings.batch.max_events * 4
            )
        else:
            self._begin_replay(partition, job)
        return True

    def _require_member(self, number: int, offsets: OffsetWriter) -> None:
        """Once a round. TurnAborted when the group has given the partitions to others, unknown to this worker."""
        if not self._is_member:
            self._write_through(number, offsets)
            self._is_member = True

    def _write_through(self, number: int, offsets: OffsetWriter) -> None:
        """Before C is read: after a crash of its broker the coordinator of Apache Kafka 4.1.1 was seen to answer with
        older offsets; what it takes in the name of this member it has read so far (ADR 0011).
        """
        offsets.abort({TopicPartition(self._settings.topics.labels, number): CommittedOffset(0, "")})

    def _find_places(self, partition: Partition, job: _Job) -> None:
        """One step of looking for where labels were folded, if that is wanted; then the replay begins."""
        if job.places is not None:
            if not job.places.step():
                return
            job.plan = job.places.plan()
        self._begin_replay(partition, job)

    def _begin_replay(self, partition: Partition, job: _Job) -> None:
        chosen = job.plan
        partition.pairs, partition.base = list(chosen.note.pairs), chosen.note.base
        self._log.info(
            "restoring", partition=partition.number, kind=chosen.kind, start=list(chosen.start), end=list(chosen.end),
            labels_by_timestamp=chosen.start.labels < chosen.note.base.labels,
        )  # fmt: skip
        job.replay = Replay(job.origin.log, chosen, self._client.reader, self._settings.batch.max_events * 4)

    def _origin(
        self, number: int, consumer: GroupOffsets, offsets: OffsetWriter, owners: Sequence[str]
    ) -> _Origin | None:
        """What Kafka says of a partition; None while a transaction hangs over its offset, or Kafka is away.

        A worker that died inside a transaction would hold this up until its transaction times out. Its
        transactional id stands in the head (`owners`) and, once it has committed, in the last commit's note:
        fencing it ends the transaction at once.
        """
        topics = self._settings.topics
        transactions = TopicPartition(topics.transactions, number)
        labels = TopicPartition(topics.labels, number)
        try:
            log = Log(
                transactions, labels, Checkpoint(consumer.first_offset(transactions), consumer.first_offset(labels))
            )
            self._end_abandoned(owners)
            self._write_through(number, offsets)
            try:
                found = consumer.committed(transactions, timeout_ms=_PENDING_WAIT_MS)
                found_labels = consumer.committed(labels, timeout_ms=_PENDING_WAIT_MS)
            except UnavailableError:
                self._fence_former_owner(transactions)
                return None
            note = CommitNote.decode(found.metadata) if found is not None else CommitNote()
            if note.transactional_id not in owners:
                self._end_abandoned([note.transactional_id])
        except UnavailableError as error:
            self._log.warning("Kafka does not say where the partition stands", partition=number, error=str(error))
            return None
        if found is None:
            return _Origin(log, None, note)
        committed = Checkpoint(found.offset, found_labels.offset if found_labels else log.first.labels)
        return _Origin(log, committed, note)

    def _fence_former_owner(self, transactions: TopicPartition) -> None:
        admin = self._client.admin()
        try:
            last = admin.last_committed(self._settings.kafka.group, [transactions]).get(transactions)
        finally:
            admin.close()
        self._end_abandoned([CommitNote.decode(last.metadata).transactional_id] if last else [])

    def _end_abandoned(self, owners: Sequence[str]) -> None:
        """A dead owner's open transaction, even one without offsets yet, would hide the next outputs from readers.

        The transaction of a worker that still is in the group is its own affair.
        """
        group = self._settings.kafka.group
        former = {name for name in owners if name != self._transactional_id and name.startswith(f"{group}-")}
        former -= self._ended
        if not former:
            return
        admin = self._client.admin()
        try:
            for name in sorted(former):
                if admin.is_abandoned(name, group, name.removeprefix(f"{group}-")):
                    self._log.warning("ending the transaction of a dead worker", transactional_id=name)
                    admin.fence(name)
                self._ended.add(name)
        finally:
            admin.close()

    def _horizon(self, log: Log) -> Checkpoint:
        """Where the feature horizon begins in both logs."""
        since = self._clock.now_ms() - self._settings.state.horizon_days * _DAY_MS
        reader = self._client.reader()
        try:
            starts = [reader.offset_for_time(tp, since) for tp in (log.transactions, log.labels)]
            ends = [reader.end_offset(tp) for tp in (log.transactions, log.labels)]
        finally:
            reader.close()
        return Checkpoint(*(end if start is None else start for start, end in zip(starts, ends, strict=True)))

    def _replay(self, partition: Partition, step: Step, flush_all: Callable[[], None]) -> None:
        """Folds one step, in portions that keep within what a cut-short flush can be replayed over."""
        labels = self._pipeline.decode_labels(step.labels).batch
        while len(labels):
            portion = labels.part(0, self._at_once(labels.accounts, ACCOUNT_LABELS_PER_TURN))
            self._make_room(partition, portion, flush_all)
            self._pipeline.fold_labels(portion)
            partition.done = Checkpoint(partition.done.transactions, int(portion.offset[-1]) + 1)
            labels = labels.part(len(portion), len(labels))
        partition.done = Checkpoint(partition.done.transactions, step.done.labels)
        events = self._pipeline.decode_events(step.transactions).batch
        while len(events):
            portion_of_events = events.part(0, self._at_once(events.accounts, ACCOUNT_EVENTS_PER_TURN))
            self._make_room(partition, portion_of_events, flush_all)
            self._pipeline.fold_events(portion_of_events)
            partition.done = Checkpoint(int(portion_of_events.offset[-1]) + 1, step.done.labels)
            events = events.part(len(portion_of_events), len(events))
        partition.done = step.done

    def _at_once(self, accounts: list[str], limit: int) -> int:
        """As in a turn: no more than the arena is sure to hold, and of no account more than may wait for a flush."""
        return min(within_limit(accounts, limit), self._settings.batch.max_events)

    def _make_room(self, partition: Partition, batch: EventBatch | LabelBatch, flush_all: Callable[[], None]) -> None:
        """Between two portions every row stands at its partition's `done`, so all may be flushed."""
        if self._keeper.must_flush([partition.number]):
            flush_all()
        self._pipeline.next_turn()
        try:
            self._keeper.load(batch, {partition.number: partition.head})
        except ArenaFullError:
            flush_all()
            self._keeper.load(batch, {partition.number: partition.head})


def _offsets(log: Log, at: Checkpoint, note: CommitNote) -> dict[TopicPartition, CommittedOffset]:
    """What to commit of a partition: its note stands beside the transactions' offset."""
    return {
        log.transactions: CommittedOffset(at.transactions, note.encode()),
        log.labels: CommittedOffset(at.labels, ""),
    }
