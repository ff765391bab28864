"""Windowed values of shared entities, for a whole batch at once, in closed form.

An entity has its own clock: the newest event time that its partition saw, c_i = max(t_0..t_i). An event
falls into the tile of the clock, so a late one counts as new, and tile numbers never go back along the
log. Hence event i sees of window w exactly the earlier events j with q_j > q_i - 16 (q = clock // tile
width), whatever the batches were: the row's tiles that are young enough, plus, inside the batch, a
contiguous run that a binary search finds. A busy merchant costs one step, not one per event.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream.features.pool import RowPool, Slots
from stream.features.rows import NEVER, TILES, EntityRows

I64 = NDArray[np.int64]
_SEGMENT = 1 << 44
"""Above every clock in milliseconds (the year 2527), so that (segment, clock) sorts as one integer."""


@dataclass(slots=True)
class EntityValues:
    """Values before each event, (B, W) and (B,). Zero, and NEVER, where the event has no such entity."""

    count: I64
    sum_minor: I64
    fraud: I64
    last_fraud: I64
    present: NDArray[np.bool_]

    @classmethod
    def nothing(cls, events: int, windows: int) -> EntityValues:
        shape = (events, windows)
        zero = np.zeros(shape, dtype=np.int64)
        never = np.full(events, NEVER, dtype=np.int64)
        return cls(zero, zero.copy(), zero.copy(), never, np.zeros(events, dtype=np.bool_))


def evaluate_and_fold(
    rows: EntityRows, slots: Slots, time_ms: I64, amount_minor: I64, offset: I64, *, use_others: bool
) -> tuple[EntityValues, EntityValues, NDArray[np.bool_]]:
    """Own values, own plus others' values, and where the others took part; then folds the events.

    The events are in offset order; `slots` is -1 where an event has no such entity, is a duplicate, or is
    already included in the row: such events see nothing and change nothing.
    """
    events, windows = len(slots), len(rows.widths_ms)
    own = EntityValues.nothing(events, windows)
    active = np.flatnonzero(slots >= 0)
    shared = np.zeros(events, dtype=np.bool_)
    if not len(active):
        return own, own, shared
    pool = rows.pool
    order = active[np.argsort(slots[active], kind="stable")]
    slot, amount = slots[order], np.maximum(amount_minor[order], 0)
    starts = np.concatenate(([True], slot[1:] != slot[:-1]))
    segment = np.cumsum(starts) - 1
    clock = _segment_clock(np.maximum(time_ms[order], pool["clock"][slot]), segment)
    tile = clock[:, None] // rows.widths_ms  # (n, W)

    count, total, fraud = _tiles_at(pool, "", slot, tile)
    first = np.flatnonzero(starts)[segment]
    position = np.arange(len(order))
    sums = np.concatenate(([0], np.cumsum(amount)))
    for w in range(windows):
        composite = segment * _SEGMENT + tile[:, w]
        oldest = np.searchsorted(composite, composite - TILES, side="right")
        oldest = np.maximum(oldest, first)
        count[:, w] += position - oldest
        total[:, w] += sums[position] - sums[oldest]
    _scatter(own, order, count, total, fraud, pool["last_fraud"][slot])
    merged = own
    if use_others:
        more = _tiles_at(pool, "other_", slot, tile)
        last = np.maximum(pool["last_fraud"][slot], pool["other_last_fraud"][slot])
        took_part = more[0].any(axis=1) | more[2].any(axis=1) | (last > pool["last_fraud"][slot])
        if took_part.any():
            shared[order] = took_part
            merged = EntityValues.nothing(events, windows)
            _scatter(merged, order, count + more[0], total + more[1], fraud + more[2], last)
    _fold(pool, slot, segment, clock, tile, amount, offset[order])
    return own, merged, shared


def _segment_clock(clock: I64, segment: I64) -> I64:
    """Running maximum within each segment: (n,)."""
    shifted = np.maximum.accumulate(clock + segment * _SEGMENT)
    return shifted - segment * _SEGMENT


def _tiles_at(pool: RowPool, prefix: str, slot: Slots, tile: I64) -> tuple[I64, I64, I64]:
    """Count, sum and frauds of the tiles in (tile - 16, tile]: three of (n, W)."""
    epoch = pool[f"{prefix}tile_epoch"][slot]
    young = (epoch > (tile - TILES)[:, :, None]) & (epoch <= tile[:, :, None]) & (epoch >= 0)
    count, total, fraud = (
        np.where(young, pool[f"{prefix}tile_{name}"][slot], 0).sum(axis=2, dtype=np.int64)
        for name in ("count", "sum", "fraud")
    )
    return count, total, fraud


def _scatter(values: EntityValues, order: I64, count: I64, total: I64, fraud: I64, last_fraud: I64) -> None:
    values.count[order] = count
    values.sum_minor[order] = total
    values.fraud[order] = fraud
    values.last_fraud[order] = last_fraud
    values.present[order] = True


def _fold(pool: RowPool, slot: Slots, segment: I64, clock: I64, tile: I64, amount: I64, offset: I64) -> None:
    last = np.flatnonzero(np.concatenate((segment[1:] != segment[:-1], [True])))
    for w in range(tile.shape[1]):
        groups = np.flatnonzero(np.concatenate(([True], (segment[1:] != segment[:-1]) | (tile[1:, w] != tile[:-1, w]))))
        rows, tiles = slot[groups], tile[groups, w]
        place = tiles % TILES
        same = pool["tile_epoch"][rows, w, place] == tiles
        counts = np.diff(np.append(groups, len(slot)))
        sums = np.add.reduceat(amount, groups)
        # Where one row's groups meet in a place, the later assignment wins: it is the younger tile.
        for name, new in (("tile_count", counts), ("tile_sum", sums), ("tile_fraud", np.zeros_like(counts))):
            pool[name][rows, w, place] = new + np.where(same, pool[name][rows, w, place], 0)
        pool["tile_epoch"][rows, w, place] = tiles
    pool["clock"][slot[last]] = clock[last]
    pool["offset"][slot[last]] = offset[last] + 1
    pool.dirty[slot[last]] = True


def fold_labels(rows: EntityRows, slots: Slots, change: I64, known_ms: I64, offset: I64) -> None:
    """Adds `change` (+1 a confirmed fraud, -1 a revision, 0 genuine) of each label to its entity's tiles.

    A fraud counts in the tile of the entity's clock: when it became known, by the partition's own time.
    `slots` is -1 where there is nothing to do; the labels are in offset order.
    """
    active = np.flatnonzero(slots >= 0)
    if not len(active):
        return
    pool, slot = rows.pool, slots[active]
    counted = (change[active] != 0) & (pool["clock"][slot] > NEVER)
    chosen, delta = slot[counted], change[active][counted]
    for w, width in enumerate(rows.widths_ms.tolist()):
        tiles = pool["clock"][chosen] // width
        place = tiles % TILES
        stale = pool["tile_epoch"][chosen, w, place] != tiles
        for name in ("tile_count", "tile_sum", "tile_fraud"):
            pool[name][chosen[stale], w, place[stale]] = 0
        pool["tile_epoch"][chosen, w, place] = tiles
        np.add.at(pool["tile_fraud"], (chosen, w, place), delta)
    confirmed = change[active] > 0
    np.maximum.at(pool["last_fraud"], slot[confirmed], known_ms[active][confirmed])
    np.maximum.at(pool["labels_offset"], slot, offset[active] + 1)
    pool.dirty[slot] = True
