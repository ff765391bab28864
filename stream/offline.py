"""The feature code over a history instead of Kafka: for `score`, and for making training data.

Events get the partitions and offsets that `replay` would give them on empty topics, labels too, so an
offline score can be compared with the one from Kafka event by event.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stream.engine.flush import RowKeeper
from stream.engine.partition import Partition, Phase
from stream.events.moments import moments_ms
from stream.features.assemble import FeatureState
from stream.features.batch import Assembled, EventBatch, LabelBatch
from stream.features.columns import ColumnBuilder, MoneyConverter
from stream.features.pool import ArenaFullError
from stream.features.spec import Domain
from stream.history.batch import HistoryBatch, LabelQueue
from stream.history.due import DueLabels, Places
from stream.kafka.partitioner import partition_for
from stream.metrics import Metrics
from stream.state.memory import MemoryStore
from stream.state.store import Checkpoint

I64 = NDArray[np.int64]
Verdicts = Literal["none", "fraud", "all"]


@dataclass(slots=True)
class Replayed:
    """A stretch of the history, the same as columns, and its vectors; all aligned."""

    history: HistoryBatch
    batch: EventBatch
    assembled: Assembled
    labels_offset: I64
    """(B,): how many labels of its partition had been folded before each event."""


@dataclass(frozen=True, slots=True)
class RecordedLabels:
    """Where a run on Kafka folded its labels: to repeat it exactly."""

    published: list[list[dict[str, Any]]]
    """By partition: the labels in the order of their topic."""
    before: list[I64]
    """By partition, (events,): the labels offset that the score record of each event names."""


class HistoryReplay:
    """Replays a history through the feature code. Iterate over `run` once."""

    def __init__(
        self,
        domain: Domain,
        money: MoneyConverter,
        metrics: Metrics,
        *,
        partitions: int = 1,
        labels: Verdicts | RecordedLabels = "fraud",
        batch_events: int = 2_048,
        accounts: int = 262_144,
    ) -> None:
        """`labels`: which verdicts become known, each before the first event that is not earlier; or a record."""
        self._domain, self._batch_events = domain, batch_events
        self._columns = ColumnBuilder(domain, money)
        self._recorded = labels if isinstance(labels, RecordedLabels) else None
        self._verdicts: Verdicts = labels if not isinstance(labels, RecordedLabels) else "none"
        self._queue = LabelQueue("all" if labels == "all" else "fraud")
        self._partitions = [Partition(number, Phase.RUNNING) for number in range(partitions)]
        self._events_seen = [0] * partitions
        self._labels_seen = [0] * partitions
        self.state = FeatureState(domain, accounts=accounts, entities=accounts, use_others=partitions > 1)
        store = MemoryStore("offline", domain.spec_id)
        for number, partition in enumerate(self._partitions):
            partition.head = store.claim(number, "offline", 0)
        self._keeper = RowKeeper(self.state, store, metrics, share_entities=False)

    def run(self, batches: Iterable[HistoryBatch]) -> Iterator[Replayed]:
        """The history's events in its order, cut where labels are folded and at `batch_events`."""
        for history in batches:
            events = history.events()
            partition, offset = self._origins(events)
            cuts, labels_offset = self._labels(history, partition, offset)
            start = 0
            for cut in [*cuts, len(events)]:
                self._publish_labels(history, start, cut)
                while start < cut:
                    stop = min(start + self._batch_events, cut)
                    chosen = slice(start, stop)
                    batch = self._columns.events(
                        events[chosen], history.time_ms[chosen], partition[chosen], offset[chosen]
                    )
                    yield Replayed(history.take(chosen), batch, self._assembled(batch), labels_offset[chosen])
                    start = stop
                if cut < len(events):
                    self._fold_due(int(history.time_ms[cut]), int(partition[cut]), int(offset[cut]))

    def _origins(self, events: list[dict[str, Any]]) -> tuple[NDArray[np.int32], I64]:
        """Partition and offset of each event, as its keyed record would get them: (B,) each."""
        field, count = self._domain.account_field, len(self._partitions)
        numbers = [partition_for(event[field].encode(), count) if count > 1 else 0 for event in events]
        partition, offset = np.array(numbers, dtype=np.int32), np.empty(len(events), dtype=np.int64)
        for number in range(count):
            own = np.flatnonzero(partition == number)
            offset[own] = self._events_seen[number] + np.arange(len(own))
            self._events_seen[number] += len(own)
        return partition, offset

    def _labels(self, history: HistoryBatch, partition: NDArray[np.int32], offset: I64) -> tuple[list[int], I64]:
        """Positions of the events before which labels are folded, in order; and each event's `labels_offset`."""
        seen, offsets = np.array(self._labels_seen, dtype=np.int64), np.empty(len(partition), dtype=np.int64)
        if self._recorded is None:
            due = self._due(history, partition)
            for number in range(len(seen)):
                own = np.flatnonzero(partition == number)
                offsets[own] = seen[number] + np.searchsorted(due.at[due.partition == number], own, side="right")
            return [cut for cut in due.cuts() if cut < len(history)], offsets
        changes = []
        for number, before in enumerate(self._recorded.before):
            own = np.flatnonzero(partition == number)
            offsets[own] = folded = before[offset[own]]
            changes.append(own[np.diff(folded, prepend=seen[number]) > 0])
        return sorted(np.concatenate(changes).tolist()) if changes else [], offsets

    def _due(self, history: HistoryBatch, partition: NDArray[np.int32]) -> DueLabels:
        """The labels that wait, and those of this batch."""
        waiting = self._queue.waiting()
        wanted = {"none": [], "fraud": history.fraud == 1, "all": history.fraud >= 0}[self._verdicts]
        rows = np.flatnonzero(wanted)
        known_ms = np.concatenate((np.array([known for known, _ in waiting], dtype=np.int64), history.known_ms[rows]))
        after = np.concatenate((np.zeros(len(waiting), dtype=np.int64), rows + 1))
        at = np.maximum(np.searchsorted(history.time_ms, known_ms), after)
        count, field = len(self._partitions), self._domain.account_field
        numbers = [partition_for(label[field].encode(), count) if count > 1 else 0 for _, label in waiting]
        needed = np.full(len(at), len(history), dtype=np.int64)
        for name in (field, *(entity.field for entity in self._domain.entities)):
            if name in history.text:
                places = Places(history.text[name].tolist())
                codes = [*places.codes_of([label.get(name) for _, label in waiting]), *places.code[rows].tolist()]
                needed = np.minimum(needed, places.first(np.array(codes, dtype=np.int64), at))
        return DueLabels(at, needed, np.concatenate((np.array(numbers, dtype=np.int64), partition[rows])))

    def _publish_labels(self, history: HistoryBatch, start: int, stop: int) -> None:
        if self._verdicts != "none":
            self._queue.push(history.take(slice(start, stop)))

    def _fold_due(self, time_ms: int, partition: int, offset: int) -> None:
        """Folds what is due before the event of this time, partition and offset."""
        if self._recorded is not None:
            seen, due = self._labels_seen[partition], int(self._recorded.before[partition][offset])
            self._fold(partition, self._recorded.published[partition][seen:due])
            return
        by_partition: dict[int, list[dict[str, Any]]] = {}
        for label in self._queue.pop(time_ms):
            account = label[self._domain.account_field].encode()
            count = len(self._partitions)
            by_partition.setdefault(partition_for(account, count) if count > 1 else 0, []).append(label)
        for number, labels in by_partition.items():
            self._fold(number, labels)

    def _fold(self, number: int, labels: list[dict[str, Any]]) -> None:
        if not labels:
            return
        first = self._labels_seen[number]
        self._labels_seen[number] += len(labels)
        batch = self._columns.labels(
            labels,
            moments_ms([label[self._domain.time_field] for label in labels]),
            moments_ms([label[self._domain.label_time_field] for label in labels]),
            np.full(len(labels), number, dtype=np.int32),
            np.arange(first, first + len(labels)),
        )
        self._load(batch)
        self.state.fold_labels(batch)

    def _assembled(self, batch: EventBatch) -> Assembled:
        self._load(batch)
        if len(self._partitions) > 1:
            self._share_entities(batch)
        return self.state.assemble(batch)

    def _load(self, batch: EventBatch | LabelBatch) -> None:
        self.state.next_turn()
        try:
            self._keeper.load(batch, {partition.number: partition.head for partition in self._partitions})
        except ArenaFullError:
            self._flush()
            self._keeper.load(batch, {partition.number: partition.head for partition in self._partitions})

    def _share_entities(self, batch: EventBatch) -> None:
        """Other partitions' entity values as they are now: fresher than a running worker could have them."""
        table = self.state.entity_table
        for rows, slots in table.owners(self.state.entity_slots(batch)):
            own = rows.pool.partition_of(slots)
            identities = [rows.pool.identity[slot] for slot in slots.tolist()]
            others: list[dict[int, bytes]] = [{} for _ in identities]
            for number in range(len(self._partitions)):
                found = rows.pool.find(number, identities)
                present = np.flatnonzero((found >= 0) & (own != number))
                for place, row in zip(present.tolist(), rows.pack(found[present]), strict=True):
                    others[place][number] = row
            rows.set_others(slots, others, 0)

    def _flush(self) -> None:
        for partition in self._partitions:
            number = partition.number
            partition.done = Checkpoint(self._events_seen[number], self._labels_seen[number])
        self._keeper.flush(self._partitions)


def published_labels(
    batches: Iterable[HistoryBatch], domain: Domain, partitions: int, verdicts: Verdicts
) -> list[list[dict[str, Any]]]:
    """By partition: the labels that `replay` publishes, in the order of their topic."""
    queue = LabelQueue("all" if verdicts == "all" else "fraud")
    for batch in batches:
        queue.push(batch)
    published: list[list[dict[str, Any]]] = [[] for _ in range(partitions)]
    for label in queue.pop(2**62):
        account = label[domain.account_field].encode()
        published[partition_for(account, partitions) if partitions > 1 else 0].append(label)
    return published
