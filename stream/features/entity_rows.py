"""What an entity's row holds: counts by time, the youngest first, and its packed form.

Events are not remembered one by one, because a busy merchant has too many. A window up to a day has
sixteen tiles of events. For longer windows, for money and for verdicts, there is one count per day of
the entity's clock: events, their money, and the frauds among them that were confirmed later, some of
them unexplained; and, where an operator of the domain asks for it, their largest amount, and one of 64 bits for
each account. Place 0 is the tile or day of the clock, place k the k-th before it; so a row that is older
than the event in hand is read k places further on, and no numbers of tiles need to be kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.errors import ConfigError
from stream.features.pool import Arrays, RowField, RowPool, Slots, allocate
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
_FIXED = (
    *HEADER_FIELDS,
    RowField("clock", "<i8", (), NEVER),  # newest event time that this partition saw
    RowField("last_fraud", "<i8", (), NEVER),  # when a fraud last became known
    RowField("judged", "u1"),  # 1 once a fraud was counted
)
_SIGHT = (
    RowField("other_read_ms", "<i8", (), NEVER),  # when the other partitions' partials were last read
    RowField("has_others", "?"),  # whether there were any
)
FRAUDS = ("day_fraud", "day_unexplained")


class EntityTable:
    """All kinds of a domain's entities, their rows in the same arrays: a batch asks for all kinds at once.

    Kind number k has the slots from k * `capacity` on; its own pool counts them from 0. There is room for what any
    kind keeps. What a kind does not keep is counted along with the others', but is not in its pool, and never read.
    """

    def __init__(
        self,
        entities: Sequence[Entity],
        label_delay: str,
        capacity: int,
        keeps: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        """`capacity` of each kind; `keeps`: which of OPTIONAL, by kind.

        ConfigError for a window of a day or more, or a delay, that is not whole days.
        """
        self.capacity, self.entities = capacity, tuple(entities)
        windows = tuple(dict.fromkeys(window for entity in entities for window in entity.windows))
        short = tuple(window for window in windows if window_ms(window) <= DAY_MS)
        self.days = {w: _whole_days(w) for w in windows if window_ms(w) >= DAY_MS}
        self.delay = _whole_days(label_delay)
        self.lengths = np.array([self._days_kept(entity) for entity in entities], dtype=np.int64)
        self.length = int(self.lengths.max(initial=1))
        self._equal = bool((self.lengths == self.length).all())
        self.width_ms = dict(zip(short, tile_widths_ms(short).tolist(), strict=True))
        kept = {name for names in (keeps or {}).values() for name in names}
        counts = (
            *(RowField(tiles(window), "<i4", (TILES,)) for window in short),
            RowField("day_count", "<i4", (self.length,)),
            RowField("day_sum", "<i8", (self.length,)),
            *(RowField(name, dtype, (self.length,)) for name, dtype in OPTIONAL.items() if name in kept),
        )
        frauds = (RowField("day_fraud", "<i4", (self.length,)), RowField("day_unexplained", "<i4", (self.length,)))
        self.counted_days = tuple(field.name for field in counts[len(short) :])  # what events bring by the day
        self._merged = (*_FIXED[2:], *counts, *frauds)
        others = tuple(RowField(f"other_{f.name}", f.dtype, f.shape, f.empty) for f in self._merged)
        fields = (*_FIXED, *counts, *frauds, *others, *_SIGHT)
        self._arrays = allocate(fields, capacity * len(self.entities))
        self.rows = {
            entity.name: EntityRows(entity, self, fields, kind, (keeps or {}).get(entity.name, ()))
            for kind, entity in enumerate(entities)
        }

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def _days_kept(self, entity: Entity) -> int:
        return self.delay + max([1, *(self.days[w] for w in entity.windows if w in self.days)]) + 1

    def part(self, kind: int) -> Arrays:
        """The rows of one kind."""
        return {name: array[kind * self.capacity :][: self.capacity] for name, array in self._arrays.items()}

    def stacked(self, slots: Mapping[str, Slots]) -> Slots:
        """(kinds * B,): the table's slots for those (B,) of each kind, in the order of the kinds; -1 stays."""
        parts = [slots[entity.name] for entity in self.entities]
        found = [np.where(part >= 0, part + kind * self.capacity, -1) for kind, part in enumerate(parts)]
        return np.concatenate([*found, np.zeros(0, dtype=np.int64)])

    def owners(self, slots: Slots) -> list[tuple[EntityRows, Slots]]:
        """The table's slots, in ascending order, as each kind's own."""
        bounds = np.searchsorted(slots, np.arange(1, len(self.entities)) * self.capacity)
        parts = np.split(slots, bounds)
        return [(rows, part - rows.first) for rows, part in zip(self.rows.values(), parts, strict=True)]

    def within(self, days: NDArray[Any], slots: Slots) -> NDArray[Any]:
        """(n, K) counts by age in days of n rows, without those that are older than the row's kind keeps."""
        if self._equal:
            return days
        kept: NDArray[Any] = np.where(np.arange(self.length) < self.lengths[slots // self.capacity, None], days, 0)
        return kept

    def set_others(self, slots: Slots, others: Sequence[Mapping[int, bytes]], now_ms: int) -> None:
        """Takes in the other partitions' partials of each row, packed rows by partition, as they were read at `now_ms`.

        Most rows of a device or an address have none and had none: nothing of them is touched but the time.
        """
        self["other_read_ms"][slots] = now_ms
        flat = [(place, row) for place, rows in enumerate(others) for _, row in sorted(rows.items())]
        seen = np.array([place for place, _ in flat], dtype=np.int64)
        first = np.flatnonzero(np.diff(seen, prepend=-1))  # (n,): of the rows with copies
        alone = np.delete(slots, seen[first])
        left = alone[self["has_others"][alone]]
        if len(left):
            self["has_others"][left] = False
            for field in self._merged:
                self[f"other_{field.name}"][left] = field.empty
        if not flat:
            return
        partials, slot = self._tables([row for _, row in flat], slots[seen] // self.capacity), slots[seen[first]]
        self["has_others"][slot] = True
        for field in _FIXED[2:]:
            self[f"other_{field.name}"][slot] = np.maximum.reduceat(partials[field.name], first)
        copies = np.diff(first, append=len(flat))
        behind = np.repeat(self["other_clock"][slot], copies)
        clock = np.where(partials["clock"] > NEVER, partials["clock"], behind)
        widths = {tiles(window): width for window, width in self.width_ms.items()}
        widths |= dict.fromkeys((*self.counted_days, *FRAUDS), DAY_MS)
        # Mostly it is one copy or a few: the k-th of each row that has as many is merged into the first.
        more = [np.flatnonzero(copies > k) for k in range(1, int(copies.max()))]
        for name, width in widths.items():
            moved, merged = moved_on(partials[name], behind // width - clock // width), merge(name)
            result = moved[first]
            for k, rows in enumerate(more, 1):
                result[rows] = merged(result[rows], moved[first[rows] + k])
            self[f"other_{name}"][slot] = result

    def _tables(self, rows: Sequence[bytes], kinds: I64) -> dict[str, NDArray[Any]]:
        """Packed rows as arrays of the fields that are merged over partitions, zeros where they hold none."""
        tables = {f.name: np.full((len(rows), *f.shape), f.empty, dtype=f.dtype) for f in self._merged}
        by_class: dict[tuple[int, int], list[int]] = {}
        for i, (kind, row) in enumerate(zip(kinds.tolist(), rows, strict=True)):
            by_class.setdefault((kind, row[16]), []).append(i)
        owners = list(self.rows.values())
        for (kind, code), members in by_class.items():
            table = structured([rows[i] for i in members], owners[kind].dtypes[code])
            for name in tables.keys() & set(table.dtype.names or ()):
                if table[name].ndim > 1:
                    tables[name][members, : table[name].shape[1]] = table[name]
                else:
                    tables[name][members] = table[name]
        return tables


class EntityRows:
    """One kind's part of the table: its pool, and the packed form of its rows."""

    def __init__(
        self, entity: Entity, table: EntityTable, fields: Sequence[RowField], kind: int, keeps: Collection[str]
    ) -> None:
        self.entity, self.table = entity, table
        self.first, self.length = kind * table.capacity, int(table.lengths[kind])
        named = {field.name: field for field in fields}
        # Of a kind's windows the order is its own: it is part of the packed form.
        own_tiles = [named[tiles(window)] for window in entity.windows if window in table.width_ms]
        own_days = [named[name] for name in table.counted_days if name not in OPTIONAL or name in keeps]
        self._counts, self._frauds = (*own_tiles, *own_days), tuple(named[name] for name in FRAUDS)
        own = {field.name for field in (*_FIXED, *_SIGHT, *self._counts, *self._frauds)}
        kept = [field for field in fields if field.name.removeprefix("other_") in own or field.name in own]
        self.pool = RowPool(entity.name, kept, table.capacity, table.part(kind))
        blocks = range(-(-self.length // _BLOCK) + 1)
        self.dtypes = {code + extra: self._class_dtype(code, extra) for code in blocks for extra in (0, _WITH_FRAUD)}

    def _class_dtype(self, blocks: int, with_fraud: int) -> np.dtype[np.void]:
        days = min(blocks * _BLOCK, self.length)
        parts: list[Any] = [(f.name, f.dtype) for f in _FIXED[:2]]
        parts.append(("class", "u1"))
        parts += [(f.name, f.dtype) for f in _FIXED[2:]]
        for field in (*self._counts, *(self._frauds if with_fraud else ())):
            parts.append((field.name, field.dtype, (days,) if field.name.startswith("day") else field.shape))
        return np.dtype(parts)

    def pack(self, slots: Slots) -> list[bytes]:
        """The rows as bytes, in the order of `slots`."""
        pool = self.pool
        fraud = (pool["day_fraud"][slots] != 0) | (pool["day_unexplained"][slots] != 0)
        used = fraud | (pool["day_count"][slots] != 0) | (pool["day_sum"][slots] != 0)
        days = np.where(used, np.arange(1, used.shape[1] + 1), 0).max(axis=1)
        codes = -(-days // _BLOCK) + np.where(fraud.any(axis=1), _WITH_FRAUD, 0)
        return pack_classes(pool, slots, codes, self.dtypes)

    def unpack(self, slots: Slots, rows: Sequence[bytes]) -> None:
        """Fills empty rows from their bytes. ValueError when bytes are of no known class or length."""
        unpack_classes(self.pool, slots, rows, self.dtypes)

    def set_others(self, slots: Slots, others: Sequence[Mapping[int, bytes]], now_ms: int) -> None:
        """As the table's, for slots of this kind."""
        self.table.set_others(slots + self.first, others, now_ms)


def tiles(window: str) -> str:
    """The field with the sixteen tiles of a window up to a day."""
    return f"tiles_{window}"


def merge(name: str) -> np.ufunc:
    """How two counts of a tile or day become one: of two partitions, or of a row and of a batch."""
    return _MERGED.get(name, np.add)


def moved_on(counts: NDArray[Any], places: I64) -> NDArray[Any]:
    """(n, K) counts by age, the youngest first, as they stand `places` (n,) later (or earlier, if negative)."""
    rows = np.flatnonzero(places)
    if not len(rows):
        return counts
    length = counts.shape[1]
    moved = counts.copy()
    source = np.arange(length) - places[rows, None]
    inside = (source >= 0) & (source < length)
    moved[rows] = np.where(inside, counts[rows[:, None], np.where(inside, source, 0)], 0)
    return moved


def _whole_days(window: str) -> int:
    days, rest = divmod(window_ms(window), DAY_MS)
    if rest or not days:
        raise ConfigError(f"{window!r}: an entity's window of a day or more, and the label delay, must be whole days")
    return days
