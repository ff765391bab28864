"""Bringing a partition's rows up to its committed offset: the plan (the restore table) and its steps.

C is the group's committed offset, W the checkpoint in the store.

| W       | plan                                                                              |
|---------|-----------------------------------------------------------------------------------|
| W = C   | nothing to do                                                                     |
| W < C   | replay [W, C) into rows, outputs suppressed                                       |
| missing | rebuild: replay from the log's start to C into an emptied partition; or start cold |
| W > C   | refused: CheckpointAheadError                                                     |

Where the log has dropped part of [W, C), or events behind C that were never done: refused
(LogTruncatedError), or gone on with from where the log begins and flagged cold, by policy.
A rebuild of more than `rebuild_max_events` begins at the feature horizon. One that does not begin at
offset 0 lacks what features remember for life: never refused, since nothing more is to be had, but flagged cold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from stream.config import StateSettings
from stream.engine.partition import CommitNote
from stream.errors import CheckpointAheadError, LogTruncatedError
from stream.kafka.port import Reader, Record, TopicPartition
from stream.state.store import Checkpoint

_DAY_MS = 86_400_000
_POLL_MS = 200


@dataclass(frozen=True, slots=True)
class Log:
    """The two input partitions of one number, and where each begins."""

    transactions: TopicPartition
    labels: TopicPartition
    first: Checkpoint


@dataclass(frozen=True, slots=True)
class Plan:
    """What to replay: [start, end). `kind` is "clean", "replay", "rebuild" or "cold".

    Labels below `note.base.labels` go by Kafka timestamps; later ones by the note's pairs.
    """

    kind: str
    start: Checkpoint
    end: Checkpoint
    note: CommitNote
    cold_until_ms: int

    @property
    def clear(self) -> bool:
        """Whether rows without a checkpoint may lie in the store, and must go first."""
        return self.kind in ("rebuild", "cold")


def plan(
    log: Log,
    committed: Checkpoint | None,
    note: CommitNote,
    checkpoint: Checkpoint | None,
    horizon_start: Checkpoint,
    policy: StateSettings,
    now_ms: int,
) -> Plan:
    """The restore table. `horizon_start` is where the feature horizon begins in the log (for a long rebuild)."""
    end = committed or log.first
    _refuse_undone(log, end, policy)
    if max([note.base.labels, *(labels for _, labels in note.pairs)]) < end.labels:
        note = replace(note, base=end, pairs=())  # a tool set the offsets
    if checkpoint is None:
        return _without_checkpoint(log, end, note, horizon_start, policy, now_ms)
    if checkpoint.transactions > end.transactions or checkpoint.labels > end.labels:
        where = "no committed offset" if committed is None else f"committed offset {tuple(end)}"
        raise CheckpointAheadError(
            f"partition {log.transactions.partition}: the state's checkpoint {tuple(checkpoint)} is ahead of the "
            f"group's {where}: the group's offsets were moved back. Either start a new state with another "
            f"redis.namespace, or drop this one with `riskstream state rebuild` and score these events again"
        )
    cold_until = note.cold_until_ms
    if _is_below(checkpoint, log.first):
        if policy.on_truncated_log == "refuse":
            raise LogTruncatedError(
                f"partition {log.transactions.partition}: the log begins at {tuple(log.first)}, the state's checkpoint "
                f"is {tuple(checkpoint)}: retention dropped what lies between. Set state.on_truncated_log=continue "
                f"to go on with flagged scores, or rebuild with `riskstream state rebuild`"
            )
        cold_until = max(cold_until, now_ms + policy.horizon_days * _DAY_MS)
    start, end = _not_below(checkpoint, log.first), _not_below(end, log.first)
    kind = "clean" if start == end == checkpoint else "replay"
    return Plan(kind, start, end, note, cold_until)


def _refuse_undone(log: Log, end: Checkpoint, policy: StateSettings) -> None:
    """Events between C and the log's first offset were never scored, and nobody can score them any more."""
    if _is_below(end, log.first) and policy.on_truncated_log == "refuse":
        raise LogTruncatedError(
            f"partition {log.transactions.partition}: the log begins at {tuple(log.first)}, the group's committed "
            f"offset is {tuple(end)}: retention dropped what lies between before it was scored (or nothing but "
            f"markers of transactions, where a worker died right after them and none came back before they expired). "
            f"Keep records longer; state.on_truncated_log=continue goes on without them, with flagged scores"
        )


def _is_below(one: Checkpoint, other: Checkpoint) -> bool:
    return one.transactions < other.transactions or one.labels < other.labels


def _not_below(one: Checkpoint, other: Checkpoint) -> Checkpoint:
    return Checkpoint(max(one.transactions, other.transactions), max(one.labels, other.labels))


def _without_checkpoint(
    log: Log, end: Checkpoint, note: CommitNote, horizon_start: Checkpoint, policy: StateSettings, now_ms: int
) -> Plan:
    warm_at = now_ms + policy.horizon_days * _DAY_MS
    if end.transactions <= log.first.transactions == 0 and end.labels == 0:
        return Plan("clean", end, end, note, 0)  # the first start ever
    end = _not_below(end, log.first)
    if policy.on_missing_checkpoint == "cold":
        return Plan("cold", end, end, note, warm_at)
    start = log.first
    if sum(end) - sum(start) > policy.rebuild_max_events:
        start = Checkpoint(min(horizon_start.transactions, end.transactions), min(horizon_start.labels, end.labels))
    return Plan("rebuild", start, end, note, warm_at if start != (0, 0) else note.cold_until_ms)


@dataclass(frozen=True, slots=True)
class Step:
    """Labels first, then transactions; `done` is the position after both."""

    labels: Sequence[Record]
    transactions: Sequence[Record]
    done: Checkpoint


class Replay:
    """Reads [start, end) of both inputs and cuts it into steps that fold labels where they were folded.

    The labels of the stretch are read first and kept (they are few), so that none comes too late.
    """

    def __init__(self, log: Log, plan: Plan, new_reader: Callable[[], Reader], max_records: int) -> None:
        """A reader is made, which takes a connection, only for an input with something to read; `close` closes it."""
        self._log, self._plan, self._max = log, plan, max_records
        self._new_reader = new_reader
        self._readers: dict[TopicPartition, Reader] = {}
        self.restart(plan.start)

    def restart(self, done: Checkpoint) -> None:
        """Everything from `done` on comes again: what was yielded could not be folded."""
        end = self._plan.end
        self._pairs = deque(pair for pair in self._plan.note.pairs if pair[1] > done.labels)
        self._pending: deque[Record] = deque()
        self._labels_read = self._due = done.labels
        self.done = done
        if done.transactions < end.transactions:
            self._read(self._log.transactions, done.transactions)
        if done.labels < end.labels:
            self._read(self._log.labels, done.labels)

    @property
    def finished(self) -> bool:
        return self.done == self._plan.end

    @property
    def remaining(self) -> int:
        """Offsets still to replay, labels included."""
        return sum(self._plan.end) - sum(self.done)

    def steps(self) -> Iterator[Step]:
        """The steps of one poll of the log. Blocks up to a fifth of a second; none when nothing came."""
        end = self._plan.end
        if self._labels_read < end.labels:
            self._pending.extend(self._poll(self._log.labels, end.labels))
            self._labels_read = self._readers[self._log.labels].position(self._log.labels)
            return
        if self.done.transactions >= end.transactions:
            self.done = end
            yield Step(list(self._pending), [], end)
            return
        records = self._poll(self._log.transactions, end.transactions)
        read_to = min(self._readers[self._log.transactions].position(self._log.transactions), end.transactions)
        place = 0
        while place < len(records):
            labels = self._labels_before(records[place])
            cut = self._next_cut(records, place)
            after = records[cut].offset if cut < len(records) else read_to
            yield self._step(labels, records[place:cut], after)
            place = cut
        if not records and read_to > self.done.transactions:
            yield self._step([], [], read_to)  # nothing but markers of transactions lay here

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()

    def _read(self, partition: TopicPartition, start: int) -> None:
        if partition not in self._readers:
            self._readers[partition] = self._new_reader()
        self._readers[partition].assign({partition: start})

    def _step(self, labels: Sequence[Record], records: Sequence[Record], transactions: int) -> Step:
        folded = labels[-1].offset + 1 if labels else self.done.labels
        self.done = Checkpoint(transactions, folded)
        return Step(labels, records, self.done)

    def _labels_before(self, record: Record) -> list[Record]:
        base = self._plan.note.base
        while self._pairs and self._pairs[0][0] <= record.offset:
            self._due = max(self._due, self._pairs.popleft()[1])
        if record.offset >= base.transactions:
            self._due = max(self._due, base.labels)
        taken: list[Record] = []
        while self._pending and (self._pending[0].offset < self._due or self._timely(self._pending[0], record)):
            taken.append(self._pending.popleft())
        return taken

    def _timely(self, label: Record, record: Record) -> bool:
        """Before the base nothing tells the labels' places but Kafka's timestamps."""
        base = self._plan.note.base
        in_stretch = label.offset < base.labels and record.offset < base.transactions
        return in_stretch and label.timestamp <= record.timestamp

    def _next_cut(self, records: Sequence[Record], place: int) -> int:
        """The next place at which labels may be due."""
        pair = self._pairs[0][0] if self._pairs else None
        base = self._plan.note.base.transactions
        label = self._pending[0] if self._pending else None
        if pair is None and label is None:
            return len(records)
        for cut in range(place + 1, len(records)):
            record = records[cut]
            if (pair is not None and record.offset >= pair) or (record.offset >= base > records[place].offset):
                return cut
            if label is not None and self._timely(label, record):
                return cut
        return len(records)

    def _poll(self, partition: TopicPartition, end: int) -> list[Record]:
        records = self._readers[partition].poll(self._max, _POLL_MS).get(partition, ())
        return [record for record in records if record.offset < end]
