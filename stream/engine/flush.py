"""Rows between memory and the store: loading what a batch needs, writing behind what has committed.

A replay is exact even if the flush was cut short: rows first, then the copies, then W. A row that is
ahead of W is harmless, for it folds nothing of what it includes, and no row is made from another kind
of row. It needs that at most 64 events of an account are folded between flushes
(features/duplicates.py): `must_flush` watches over it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from stream.engine.partition import Partition
from stream.errors import NotAuthorisedError, UnavailableError
from stream.features.assemble import FeatureState, RowName
from stream.features.batch import EventBatch, LabelBatch
from stream.features.rows import LABEL_RING, RING
from stream.metrics import Metrics
from stream.state.store import Head, StateStore

ACCOUNT_EVENTS_PER_TURN = RING // 2
ACCOUNT_LABELS_PER_TURN = LABEL_RING // 2
_WRITE_ROWS = 4_096
_MEMORY_EVERY_S = 10.0


def no_fault(point: str) -> None:
    """Fault points do nothing; crash tests pass a function that kills, stops or raises here."""


class RowKeeper:
    """Loads and flushes the rows of a worker's partitions. Owned by the engine's thread."""

    def __init__(
        self,
        state: FeatureState,
        store: StateStore,
        metrics: Metrics,
        *,
        share_entities: bool,
        fault: Callable[[str], None] = no_fault,
    ) -> None:
        """`share_entities`: publish entity partials for other partitions, and read theirs."""
        self._state, self._store, self._metrics = state, store, metrics
        self._share = share_entities
        self._fault = fault
        self._evictions: dict[str, int] = {}
        self._ask_memory_at_s = float("-inf")

    def load(
        self,
        batch: EventBatch | LabelBatch,
        heads: Mapping[int, Head | None],
        *,
        without: Collection[int] = (),
    ) -> None:
        """Brings the rows that the batch needs into memory: one round trip.

        Rows of the partitions in `without` are made empty and not asked for (they are degraded).
        UnavailableError (nothing was changed), StateLostError, ArenaFullError (flush, then again).
        """
        names = self._state.missing(batch)
        if not names:
            return
        asked = [name for name in names if name[1] not in without]
        keys = [self._store.row_key(partition, kind, identity) for kind, partition, identity in asked]
        rows = self._store.load_rows(keys, _known(heads, {name[1] for name in asked})) if asked else []
        self._state.admit(asked, keys, rows)
        empty = [name for name in names if name[1] in without]
        self._state.admit(empty, [b""] * len(empty), [None] * len(empty))
        self._count_load(asked, rows)

    def _count_load(self, names: Sequence[RowName], rows: Sequence[bytes | None]) -> None:
        loaded = sum(row is not None for row in rows)
        self._metrics.redis_rows.labels("loaded").inc(loaded)
        self._metrics.redis_rows.labels("absent").inc(len(rows) - loaded)
        for kind, count in Counter(name[0] for name in names).items():
            self._metrics.arena_misses.labels(kind).inc(count)

    def store_answers(self, partition: int) -> bool:
        """Whether the store can be asked again."""
        try:
            self._store.load_head(partition)
        except UnavailableError:
            return False
        return True

    def drop(self, partition: int) -> None:
        """Forgets every row of a partition, unwritten changes too."""
        self._state.drop(partition)

    def refresh_others(self, batch: EventBatch, now_ms: int, refresh_ms: int) -> None:
        """Reads the other partitions' partials of the batch's entities that were last read too long ago."""
        if not self._share:
            return
        for kind, rows in self._state.entities.items():
            slots = self._state.entity_slots(kind, batch)
            stale = slots[now_ms - rows.pool["other_read_ms"][slots] >= refresh_ms]
            if len(stale):
                identities = [rows.pool.identity[slot] for slot in stale.tolist()]
                copies = self._store.read_copies(kind, identities)
                rows.set_others(stale, copies, rows.pool.partition_of(stale).tolist(), now_ms)

    def measure(self) -> None:
        """Sets the gauges of the rows in memory."""
        for pool in self._state.pools():
            self._metrics.arena_rows.labels(pool.kind).set(len(pool))
            self._metrics.arena_capacity.labels(pool.kind).set(pool.capacity)
            counted = self._evictions.get(pool.kind, 0)
            self._metrics.arena_evictions.labels(pool.kind).inc(pool.evictions - counted)
            self._evictions[pool.kind] = pool.evictions

    def measure_store(self, now_s: float) -> None:
        """Asks the store now and then how full it is: one short round trip."""
        if now_s < self._ask_memory_at_s:
            return
        self._ask_memory_at_s = now_s + _MEMORY_EVERY_S
        try:
            memory = self._store.memory()
        except NotAuthorisedError:
            self._ask_memory_at_s = float("inf")
            return
        except UnavailableError:
            return
        self._metrics.redis_memory.set(memory.used_bytes)
        self._metrics.redis_memory_limit.set(memory.limit_bytes)

    def must_flush(self, partitions: Collection[int]) -> bool:
        """Whether one more turn could bring an account of these past what a replay can tell apart."""
        accounts = self._state.accounts
        used = accounts.pool.used_up_to
        many_events = accounts.unflushed_events[:used] > RING - ACCOUNT_EVENTS_PER_TURN
        many_labels = accounts.unflushed_labels[:used] > LABEL_RING - ACCOUNT_LABELS_PER_TURN
        slots = np.flatnonzero(many_events | many_labels)
        return not set(partitions).isdisjoint(accounts.pool.partition_of(slots).tolist())

    def flush(self, partitions: Collection[Partition]) -> int:
        """Writes the dirty rows of these partitions and then W of each. Nothing may be uncommitted.

        Every write names the head: a store that came back with older data gets no row (rows far ahead of W could
        not be replayed over), nor does one in which another worker has claimed the partition.

        UnavailableError: repeat later, all remains dirty. StateLostError: the head in the store is another.
        Returns how many rows were written.
        """
        heads = {partition.number: partition.head for partition in partitions}
        dirty = [(pool.kind, pool.dirty_slots(list(heads))) for pool in self._state.pools()]
        for kind, slots in dirty:
            self._write(kind, slots, heads)
            self._fault(f"flush:after_{'accounts' if kind == 'account' else 'entities'}")
        for partition in partitions:
            if partition.checkpoint != partition.done:
                head = _owned(heads, partition.number)
                partition.head = self._store.write_checkpoint(partition.number, head, partition.done)
            partition.flushed()
        for kind, slots in dirty:
            self._state.mark_clean(kind, slots)
        return sum(len(slots) for _, slots in dirty)

    def _write(
        self, kind: str, slots: np.ndarray[tuple[int], np.dtype[np.int64]], heads: Mapping[int, Head | None]
    ) -> None:
        pool = self._state.pool(kind)
        for start in range(0, len(slots), _WRITE_ROWS):
            chunk = slots[start : start + _WRITE_ROWS]
            rows = self._state.pack(kind, chunk)
            members, numbers = chunk.tolist(), pool.partition_of(chunk).tolist()
            named = dict(zip([self._key(kind, slot) for slot in members], rows, strict=True))
            replaced = self._store.write_rows(named, _known(heads, set(numbers)))
            self._metrics.redis_rows.labels("written").inc(replaced)
            self._metrics.redis_rows.labels("skipped").inc(len(members) - replaced)
            self._fault("flush:after_chunk")
            if self._share and kind != "account":
                by_partition: dict[int, dict[str, bytes]] = {}
                for slot, partition, row in zip(members, numbers, rows, strict=True):
                    by_partition.setdefault(partition, {})[pool.identity[slot]] = row
                for partition, copies in by_partition.items():
                    self._store.publish_copies(kind, partition, _owned(heads, partition), copies)

    def _key(self, kind: str, slot: int) -> bytes:
        pool = self._state.pool(kind)
        if not pool.key[slot]:
            partition = int(pool.partition_of(np.array([slot]))[0])
            pool.key[slot] = self._store.row_key(partition, kind, pool.identity[slot])
        return pool.key[slot]


def _known(heads: Mapping[int, Head | None], numbers: Collection[int]) -> dict[int, Head]:
    return {number: _owned(heads, number) for number in numbers}


def _owned(heads: Mapping[int, Head | None], number: int) -> Head:
    """A partition whose rows are loaded or flushed has been claimed."""
    head = heads[number]
    assert head is not None
    return head
