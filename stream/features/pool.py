"""A pool of rows in numpy arrays: slots by (partition, identity), eviction of clean rows, dirty marks.

The pool knows nothing of what a row means; `rows.py` declares the fields and packs them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

Slots = NDArray[np.int64]


class ArenaFullError(Exception):
    """No clean row is left to evict: flush, then try again."""


@dataclass(frozen=True, slots=True)
class RowField:
    """One array of the pool: (capacity, *shape). `empty` is the value in a new row."""

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    empty: float = 0


Arrays = dict[str, NDArray[Any]]


def allocate(fields: Iterable[RowField], capacity: int) -> Arrays:
    """(capacity, *shape) for each field, zeros; and `dirty`, which marks the rows that the store lacks."""
    # Untouched pages of zeros cost no memory: rows that are never used stay free.
    named = [*fields, RowField("dirty", "?")]
    return {field.name: np.zeros((capacity, *field.shape), dtype=field.dtype) for field in named}


class RowPool:
    """Rows of one kind. `self[name]` is the whole array of a field; index it with slots."""

    def __init__(self, kind: str, fields: Sequence[RowField], capacity: int, arrays: Arrays | None = None) -> None:
        """`arrays`: as `allocate` makes them, where others hold them too."""
        self.kind = kind
        self.capacity = capacity
        self.fields = tuple(fields)
        self._not_zero = [field for field in self.fields if field.empty != 0]
        self._arrays = allocate(fields, capacity) if arrays is None else arrays
        self.dirty = self._arrays["dirty"]
        self.identity: list[str] = [""] * capacity
        self.key: list[bytes] = [b""] * capacity
        self.code = np.zeros(capacity, dtype=np.uint32)
        """Of each row's identity: `identity_codes`."""
        self._partition = np.full(capacity, -1, dtype=np.int32)
        self._used_at = np.zeros(capacity, dtype=np.int64)
        self._index: dict[int, dict[str, int]] = {}
        self._free: list[int] = []
        self._fresh = 0
        self._turn = 0
        self.evictions = 0

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def __len__(self) -> int:
        return self._fresh - len(self._free)

    @property
    def used_up_to(self) -> int:
        """Slots from here on were never used."""
        return self._fresh

    def next_turn(self) -> None:
        """From here on, rows touched earlier may be evicted again."""
        self._turn += 1

    def find(self, partition: int, identities: Sequence[str | None]) -> Slots:
        """Slots (n,), -1 where the row is not in memory or the identity is None. Pins what it finds."""
        get: Any = self._index.setdefault(partition, {}).get
        slots = np.fromiter(map(get, identities, repeat(-1)), np.int64, len(identities))
        self._used_at[slots[slots >= 0]] = self._turn
        return slots

    def add(self, partition: int, identities: Sequence[str]) -> Slots:
        """New empty rows (n,) for distinct identities that are not in memory. ArenaFullError if no room."""
        used_before = self._fresh
        slots = self._take(len(identities))
        index = self._index.setdefault(partition, {})
        for slot, identity in zip(slots.tolist(), identities, strict=True):
            index[identity] = slot
            self.identity[slot] = identity
            self.key[slot] = b""
        self.code[slots] = identity_codes(identities)
        self._partition[slots] = partition
        self._used_at[slots] = self._turn
        self.dirty[slots] = False
        recycled = slots < used_before
        self._clear(self.fields, slots[recycled])
        # What was never used is all zeros, in pages that need not be touched for it.
        self._clear(self._not_zero, slots[~recycled])
        return slots

    def _clear(self, fields: Sequence[RowField], slots: Slots) -> None:
        """Makes these fields of the rows empty."""
        if len(slots):
            for field in fields:
                self._arrays[field.name][slots] = field.empty

    def partition_of(self, slots: Slots) -> NDArray[np.int32]:
        return self._partition[slots]

    def identities_of(self, slots: Slots) -> list[str]:
        return [self.identity[slot] for slot in slots.tolist()]

    def drop(self, partition: int) -> None:
        """Forgets all rows of a partition, dirty ones too."""
        slots = list(self._index.pop(partition, {}).values())
        self._forget(slots)

    def dirty_slots(self, partitions: Iterable[int]) -> Slots:
        """Slots of the dirty rows of these partitions, in slot order."""
        slots = np.flatnonzero(self.dirty[: self._fresh])
        wanted = np.isin(self._partition[slots], np.fromiter(partitions, dtype=np.int32))
        chosen: Slots = slots[wanted]
        return chosen

    def slots_of(self, partition: int) -> Slots:
        return np.fromiter(self._index.get(partition, {}).values(), dtype=np.int64)

    def _take(self, count: int) -> Slots:
        missing = count - len(self._free) - (self.capacity - self._fresh)
        if missing > 0:
            self._evict(max(missing, self.capacity // 16))
        taken = [self._free.pop() for _ in range(min(count, len(self._free)))]
        fresh = count - len(taken)
        if fresh > self.capacity - self._fresh:
            self._free.extend(taken)
            raise ArenaFullError(f"{self.kind} arena: {self.capacity} rows, all dirty or in use")
        taken.extend(range(self._fresh, self._fresh + fresh))
        self._fresh += fresh
        return np.array(taken, dtype=np.int64)

    def _evict(self, count: int) -> None:
        """Frees up to `count` of the clean rows that were used longest ago."""
        used = self._used_at[: self._fresh]
        candidates = np.flatnonzero(
            ~self.dirty[: self._fresh] & (self._partition[: self._fresh] >= 0) & (used < self._turn)
        )
        if len(candidates) > count:
            candidates = candidates[np.argpartition(used[candidates], count - 1)[:count]]
        for slot in candidates.tolist():
            del self._index[int(self._partition[slot])][self.identity[slot]]
        self._forget(candidates.tolist())
        self.evictions += len(candidates)

    def _forget(self, slots: list[int]) -> None:
        self._partition[slots] = -1
        self.dirty[slots] = False
        for slot in slots:
            self.identity[slot] = ""
            self.key[slot] = b""
        self._free.extend(slots)


def identity_codes(identities: Sequence[str]) -> NDArray[np.uint32]:
    """crc32 of each identity in UTF-8; a crc of 0 becomes 1, for 0 is missing: (n,)."""
    crc32 = zlib.crc32
    return np.array([crc32(identity.encode()) or 1 for identity in identities], dtype=np.uint32)
