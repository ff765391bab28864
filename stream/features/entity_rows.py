"""What an entity's row holds: counts by time, the youngest first, and its packed form.

Events are not remembered one by one, because a busy merchant has too many. A window up to a day has
sixteen tiles of events. For longer windows, for money and for verdicts, there is one count per day of
the entity's clock: events, their money, and the frauds among them that were confirmed later, some of
them unexplained; and, where an operator of the domain asks for it, their largest amount, and one of 64 bits for
each account. Place 0 is the tile or day of the clock, place k the k-th before it; so a row that is older
than the event in hand is read k places further on, and no numbers of tiles need to be kept.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.errors import ConfigError
from stream.features.pool import RowField, RowPool, Slots
from stream.features.rows import HEADER_FIELDS, NEVER, TILES, pack_classes, structured, tile_widths_ms, unpack_classes
from stream.features.spec import Entity, window_ms

I64 = NDArray[np.int64]
DAY_MS = 86_400_000
OPTIONAL = {"day_max": "<f4", "day_accounts": "<u8"}
"""Kept by the day where an operator `keeps` them, and their types: an amount in major units, 64 bits of accounts."""
_MERGED: dict[str, np.ufunc] = {"day_max": np.maximum, "day_accounts": np.bitwise_or}
_BLOCK = 8
"""Days are packed in blocks of so many, up to the oldest that is not zero."""
_WITH_FRAUD = 64
"""Bit of the class: the row has confirmed frauds."""


class EntityRows:
    """The pool of one kind of entity: own partials, and what the other partitions showed of theirs."""

    def __init__(self, entity: Entity, label_delay: str, capacity: int, keeps: Collection[str] = ()) -> None:
        """`keeps`: which of OPTIONAL. ConfigError for a window of a day or more, or a delay, that is not whole days."""
        self.entity = entity
        self.short = tuple(window for window in entity.windows if window_ms(window) <= DAY_MS)
        self.days = {w: _whole_days(w) for w in entity.windows if window_ms(w) >= DAY_MS}
        self.delay = _whole_days(label_delay)
        self.length = self.delay + max([1, *self.days.values()]) + 1
        self.widths_ms = tile_widths_ms(self.short)
        fields = (
            *HEADER_FIELDS,
            RowField("clock", "<i8", (), NEVER),  # newest event time that this partition saw
            RowField("last_fraud", "<i8", (), NEVER),  # when a fraud last became known
            RowField("judged", "u1"),  # 1 once a fraud was counted
        )
        counts = (
            RowField("tiles", "<i4", (len(self.short), TILES)),
            RowField("day_count", "<i4", (self.length,)),
            RowField("day_sum", "<i8", (self.length,)),
            *(RowField(name, dtype, (self.length,)) for name, dtype in OPTIONAL.items() if name in keeps),
        )
        self.counted_days = tuple(field.name for field in counts[1:])  # what events bring by the day
        frauds = (RowField("day_fraud", "<i4", (self.length,)), RowField("day_unexplained", "<i4", (self.length,)))
        others = tuple(RowField(f"other_{f.name}", f.dtype, f.shape, f.empty) for f in (*fields[2:], *counts, *frauds))
        seen = RowField("other_read_ms", "<i8", (), NEVER)
        self.pool = RowPool(entity.name, (*fields, *counts, *frauds, *others, seen), capacity)
        self._fixed, self._counts, self._frauds = fields, counts, frauds
        blocks = range(-(-self.length // _BLOCK) + 1)
        self._dtypes = {code + extra: self._class_dtype(code, extra) for code in blocks for extra in (0, _WITH_FRAUD)}

    def _class_dtype(self, blocks: int, with_fraud: int) -> np.dtype[np.void]:
        days = min(blocks * _BLOCK, self.length)
        parts: list[Any] = [(f.name, f.dtype) for f in self._fixed[:2]]
        parts.append(("class", "u1"))
        parts += [(f.name, f.dtype) for f in self._fixed[2:]]
        for field in (*self._counts, *(self._frauds if with_fraud else ())):
            parts.append((field.name, field.dtype, (days,) if field.name.startswith("day") else field.shape))
        return np.dtype(parts)

    def pack(self, slots: Slots) -> list[bytes]:
        """The rows as bytes, in the order of `slots`."""
        pool = self.pool
        fraud = (pool["day_fraud"][slots] != 0) | (pool["day_unexplained"][slots] != 0)
        used = fraud | (pool["day_count"][slots] != 0) | (pool["day_sum"][slots] != 0)
        days = np.where(used, np.arange(1, self.length + 1), 0).max(axis=1)
        codes = -(-days // _BLOCK) + np.where(fraud.any(axis=1), _WITH_FRAUD, 0)
        return pack_classes(pool, slots, codes, self._dtypes)

    def unpack(self, slots: Slots, rows: Sequence[bytes]) -> None:
        """Fills empty rows from their bytes. ValueError when bytes are of no known class or length."""
        unpack_classes(self.pool, slots, rows, self._dtypes)

    def set_others(self, slots: Slots, copies: Sequence[dict[int, bytes]], own: Sequence[int], now_ms: int) -> None:
        """Takes in the other partitions' partials of each row, as they were read at `now_ms`."""
        pool = self.pool
        pool["other_read_ms"][slots] = now_ms
        flat = [(place, row) for place, (rows, p) in enumerate(zip(copies, own, strict=True))
                for partition, row in sorted(rows.items()) if partition != p]  # fmt: skip
        seen = np.array([place for place, _ in flat], dtype=np.int64)
        first = np.flatnonzero(np.diff(seen, prepend=-1))  # (n,): of the rows with copies
        alone = np.delete(slots, seen[first])
        for field in (*self._fixed[2:], *self._counts, *self._frauds):
            pool[f"other_{field.name}"][alone] = field.empty
        if not flat:
            return
        partials, slot = self._tables([row for _, row in flat]), slots[seen[first]]
        for field in self._fixed[2:]:
            pool[f"other_{field.name}"][slot] = np.maximum.reduceat(partials[field.name], first)
        behind = np.repeat(pool["other_clock"][slot], np.diff(first, append=len(flat)))
        clock = np.where(partials["clock"] > NEVER, partials["clock"], behind)
        for w, width in enumerate(self.widths_ms.tolist()):
            moved = moved_on(partials["tiles"][:, w], behind // width - clock // width)
            pool["other_tiles"][slot, w] = _together(np.add, moved, first)
        for name in (*self.counted_days, *(field.name for field in self._frauds)):
            moved = moved_on(partials[name], behind // DAY_MS - clock // DAY_MS)
            pool[f"other_{name}"][slot] = _together(merge(name), moved, first)

    def _tables(self, rows: Sequence[bytes]) -> dict[str, NDArray[Any]]:
        """Packed rows as arrays of the fields that are merged over partitions, zeros where they hold none."""
        fields = (*self._fixed[2:], *self._counts, *self._frauds)
        tables = {f.name: np.full((len(rows), *f.shape), f.empty, dtype=f.dtype) for f in fields}
        by_class: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            by_class.setdefault(row[16], []).append(i)
        for code, members in by_class.items():
            table = structured([rows[i] for i in members], self._dtypes[code])
            for name in tables.keys() & set(table.dtype.names or ()):
                if table[name].ndim > 1:
                    tables[name][members, : table[name].shape[1]] = table[name]
                else:
                    tables[name][members] = table[name]
        return tables


def merge(name: str) -> np.ufunc:
    """How two counts by the day become one: of two partitions, or of a row and of a batch."""
    return _MERGED.get(name, np.add)


def _together(merged: np.ufunc, counts: NDArray[Any], first: I64) -> NDArray[Any]:
    """(n, K): the rows from each `first` (n,) up to the next merged into one; mostly it is one row, or a few."""
    result, size = counts[first], np.diff(first, append=len(counts))
    for place in range(1, int(size.max())):
        more = np.flatnonzero(size > place)
        result[more] = merged(result[more], counts[first[more] + place])
    return result


def moved_on(counts: NDArray[Any], places: I64) -> NDArray[Any]:
    """(n, K) counts by age, the youngest first, as they stand `places` (n,) later (or earlier, if negative)."""
    rows = np.flatnonzero(places)
    if not len(rows):
        return counts
    length = counts.shape[1]
    moved = counts.copy()
    source = np.arange(length) - places[rows][:, None]
    inside = (source >= 0) & (source < length)
    taken = np.take_along_axis(counts[rows], np.clip(source, 0, length - 1), axis=1)
    moved[rows] = np.where(inside, taken, 0)
    return moved


def _whole_days(window: str) -> int:
    days, rest = divmod(window_ms(window), DAY_MS)
    if rest or not days:
        raise ConfigError(f"{window!r}: an entity's window of a day or more, and the label delay, must be whole days")
    return days
