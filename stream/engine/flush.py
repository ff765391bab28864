"""Rows between memory and the store: loading what a batch needs, writing behind what has committed.

A replay is exact even if the flush was cut short: rows first, then the copies, then W. A row that is
ahead of W is harmless, for it folds nothing of what it includes, and no row is made from another kind
of row. It needs that at most 64 events of an account are folded between flushes
(features/duplicates.py): `must_flush` watches over it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from stream.engine.partition import Partition
from stream.errors import NotAuthorisedError, UnavailableError
from stream.features.assemble import FeatureState, RowName
from stream.features.batch import EventBatch, LabelBatch
from stream.features.pool import Slots
from stream.features.rows import LABEL_RING, RING
from stream.metrics import Metrics
from stream.state.store import EntityName, Head, StateStore

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
        table = self._state.entity_table
        slots = self._state.entity_slots(batch)
        stale = slots[now_ms - table["other_read_ms"][slots] >= refresh_ms]
        if not len(stale):
            return
        names: list[EntityName] = []
        partitions: list[int] = []
        for rows, some in table.owners(stale):
            names += [(rows.entity.name, identity) for identity in rows.pool.identities_of(some)]
            partitions += rows.pool.partition_of(some).tolist()
        table.set_others(stale, self._store.read_copies(names, partitions), now_ms)

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
        self._write(dirty[:1], heads)
        self._fault("flush:after_accounts")
        self._write(dirty[1:], heads)
        self._fault("flush:after_entities")
        reached = {p.number: p.done for p in partitions if p.checkpoint != p.done}
        written = self._store.write_checkpoints(reached, _known(heads, reached)) if reached else {}
        for partition in partitions:
            partition.head = written.get(partition.number, partition.head)
            partition.flushed()
        for kind, slots in dirty:
            self._state.mark_clean(kind, slots)
        return sum(len(slots) for _, slots in dirty)

    def _write(self, dirty: Sequence[tuple[str, Slots]], heads: Mapping[int, Head | None]) -> None:
        """The rows of these kinds, and behind them, of entities, the copies."""
        for portion in _portions(dirty):
            rows: dict[bytes, bytes] = {}
            partitions: set[int] = set()
            copies: dict[int, dict[EntityName, bytes]] = {}
            for kind, slots in portion:
                pool, packed = self._state.pool(kind), self._state.pack(kind, slots)
                numbers = pool.partition_of(slots).tolist()
                partitions.update(numbers)
                rows.update(zip(self._keys(kind, slots, numbers), packed, strict=True))
                if self._share and kind != "account":
                    for number, identity, row in zip(numbers, pool.identities_of(slots), packed, strict=True):
                        copies.setdefault(number, {})[kind, identity] = row
            replaced = self._store.write_rows(rows, _known(heads, partitions))
            self._metrics.redis_rows.labels("written").inc(replaced)
            self._metrics.redis_rows.labels("skipped").inc(len(rows) - replaced)
            self._fault("flush:after_chunk")
            if copies:
                self._store.publish_copies(copies, _known(heads, copies))

    def _keys(self, kind: str, slots: Slots, partitions: Sequence[int]) -> list[bytes]:
        pool, name = self._state.pool(kind), self._store.row_key
        for slot, partition in zip(slots.tolist(), partitions, strict=True):
            if not pool.key[slot]:
                pool.key[slot] = name(partition, kind, pool.identity[slot])
        return [pool.key[slot] for slot in slots.tolist()]


def _portions(dirty: Sequence[tuple[str, Slots]]) -> Iterator[list[tuple[str, Slots]]]:
    """Slots by kind, so many together that what is written at once stays small."""
    portion: list[tuple[str, Slots]] = []
    room = _WRITE_ROWS
    for kind, slots in dirty:
        start = 0
        while start < len(slots):
            taken = slots[start : start + room]
            portion.append((kind, taken))
            start, room = start + len(taken), room - len(taken)
            if not room:
                yield portion
                portion, room = [], _WRITE_ROWS
    if portion:
        yield portion


def _known(heads: Mapping[int, Head | None], numbers: Collection[int]) -> dict[int, Head]:
    return {number: _owned(heads, number) for number in numbers}


def _owned(heads: Mapping[int, Head | None], number: int) -> Head:
    """A partition whose rows are loaded or flushed has been claimed."""
    head = heads[number]
    assert head is not None
    return head
