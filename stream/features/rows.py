"""What a row holds, and its packed form in the store.

An account's row keeps its last 64 events exactly (the ring), the step vectors of the last T, its own
norm, and, only once it has had more than 64 events, tiles of those that left the ring. What an entity's
row keeps is in entity_rows.py.

Packed, a row is `offset i64, labels_offset i64, class u8` and then the fields of that class. The class
says how much of the ring is in use, so a young account's row is small; it is a function of the row's
content, so equal rows are equal bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream.errors import ConfigError
from stream.features.pool import RowField, RowPool, Slots
from stream.features.spec import Domain, window_ms

RING = 64
"""Events that an account remembers exactly; also how far back a duplicate is recognised."""
LABEL_RING = 16
"""Labels that an account remembers, to recognise a repeated or a revised verdict."""
TILES = 16
"""Tiles per window: a tile is a sixteenth of its window, the largest error of a tiled count."""
_SHORTEST_WINDOW_MS = 60_000
"""Tile numbers are int32: a tile of this window still has room until the year 2100."""
NEVER = -(2**62)
"""A time before all times."""
NO_VERDICT, GENUINE, FRAUD, UNEXPLAINED = 0, 1, 2, 3
"""Verdicts on a remembered event. Unexplained: a fraud whose amount was normal for its account."""

_RING_FIELDS = (
    RowField("ring_time", "<i8", (RING,), NEVER),
    RowField("ring_amount", "<i8", (RING,)),
    RowField("ring_hash", "<u8", (RING,)),
    RowField("ring_offset", "<i8", (RING,), -1),
    RowField("ring_norm", "<i2", (RING,), -1),  # what the norm took in; -1 nothing, -2 - x once x was taken out
    RowField("ring_verdict", "u1", (RING,)),
)
_LABEL_FIELDS = (
    RowField("label_count", "<i4"),
    RowField("label_hash", "<u8", (LABEL_RING,)),
    RowField("label_offset", "<i8", (LABEL_RING,), -1),
    RowField("label_fraud", "u1", (LABEL_RING,)),
    RowField("label_change", "i1", (LABEL_RING,)),
    RowField("label_unexplained", "i1", (LABEL_RING,)),
)
HEADER_FIELDS = (RowField("offset", "<i8"), RowField("labels_offset", "<i8"))
_SUMMARY_FIELDS = (
    RowField("folded", "<i8"),  # events folded ever: the ring's head
    RowField("since", "<i8"),  # value of `folded` when the account last began anew
    RowField("first", "<i8", (), NEVER),
    RowField("newest", "<i8", (), NEVER),
    RowField("left", "<i8", (), NEVER),  # newest of the events that left the ring
    RowField("norm_n", "<i8"),  # the account's own norm: sums of the log amount in 1/1000, clipped, fraud taken out
    RowField("norm_sum", "<i8"),
    RowField("norm_squares", "<i8"),
    RowField("hours", "<u4", (24,)),  # likewise without fraud
    RowField("weekend", "<u4"),  # of these, on a Saturday or Sunday (UTC)
    RowField("place_time", "<i8", (), NEVER),
    RowField("place_latitude", "<f8"),
    RowField("place_longitude", "<f8"),
    RowField("frauds", "<i4"),
    RowField("last_fraud", "<i8", (), NEVER),
)
_BEGIN_ANEW = (
    "first",
    "newest",
    "left",
    "norm_n",
    "norm_sum",
    "norm_squares",
    "hours",
    "weekend",
    "ring_norm",
    "ring_verdict",
    "place_time",
    "frauds",
    "last_fraud",
)


def _tile_fields(windows: int) -> tuple[RowField, ...]:
    """Tiles of `windows` windows. `tile_epoch` is the absolute tile number in each place."""
    return (
        RowField("tile_epoch", "<i4", (windows, TILES), -1),
        RowField("tile_count", "<i4", (windows, TILES)),
        RowField("tile_sum", "<i8", (windows, TILES)),
        RowField("tile_bits", "<u8", (windows, TILES)),
    )


def tile_widths_ms(windows: Sequence[str]) -> NDArray[np.int64]:
    """(W,): width of a tile of each window, in milliseconds. ConfigError for one that is too short to number."""
    short = [window for window in windows if window_ms(window) < _SHORTEST_WINDOW_MS]
    if short:
        raise ConfigError(f"window {short[0]!r}: the shortest is {_SHORTEST_WINDOW_MS // 1000} s")
    return np.array([window_ms(window) // TILES for window in windows], dtype=np.int64)


def code_bits(codes: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """One of 64 bits per code, none for 0. Multiplied first (Knuth), for the crcs of like names are alike."""
    place = codes * np.uint32(0x9E3779B1) >> np.uint32(26)
    return np.where(codes > 0, np.uint64(1) << place.astype(np.uint64), np.uint64(0))


def linear_count(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """How many codes set these bits, (n,): linear counting over 64 bits, which ends at 266 (Whang et al. 1990)."""
    empty = np.maximum(64.0 - np.bitwise_count(bits), 1.0)
    return -64.0 * np.log(empty / 64.0)


class AccountRows:
    """The accounts' pool of one domain, with the packing of its rows."""

    def __init__(
        self, domain: Domain, capacity: int, same_fields: Sequence[str], distinct_fields: Sequence[str]
    ) -> None:
        """`same_fields`: entities or categories whose code each ring entry keeps (in `code_<field>`).

        `distinct_fields`: those of them whose different values are counted (by `newest_<field>`).
        """
        self.windows = domain.windows
        self.window_ms = np.array([window_ms(window) for window in domain.windows], dtype=np.int64)
        self.horizon_ms = int(self.window_ms.max())
        self.delay_ms = window_ms(domain.label_delay)
        self.same_fields = tuple(same_fields)
        self.distinct_fields = tuple(distinct_fields)
        self.tile_field = distinct_fields[0] if distinct_fields else None  # whose distinct values the tiles remember
        step = RowField("steps", "<f2", (domain.sequence_length, len(domain.step_columns)))
        codes = tuple(RowField(f"code_{name}", "<u4", (RING,)) for name in self.same_fields)
        newest = tuple(RowField(f"newest_{name}", "?", (RING,)) for name in self.distinct_fields)
        self._ring = (*_RING_FIELDS, *codes, *newest)
        self._tiles = _tile_fields(len(domain.windows))
        self._step = step
        fields = (*HEADER_FIELDS, *_SUMMARY_FIELDS, *self._ring, *_LABEL_FIELDS, *self._tiles, step)
        self.pool = RowPool("account", fields, capacity)
        self.unflushed_events = np.zeros(capacity, dtype=np.int32)  # folded since the row was last in the store
        self.unflushed_labels = np.zeros(capacity, dtype=np.int32)
        self._dtypes = {code: self._class_dtype(code) for code in range(16)}

    def begin_anew(self, slots: Slots) -> None:
        """Idle past the horizon: everything but the ids and offsets of past events is forgotten."""
        pool = self.pool
        empty = {field.name: field.empty for field in pool.fields}
        for name in (*_BEGIN_ANEW, "ring_time", "tile_epoch", *(f"newest_{name}" for name in self.distinct_fields)):
            pool[name][slots] = empty[name]
        pool["since"][slots] = pool["folded"][slots]

    def _class_dtype(self, code: int) -> np.dtype[np.void]:
        """Class bits: 0-1 ring size 8, 16, 32, 64; 2 labels present; 3 tiles present."""
        ring, labels, tiles = 8 << (code & 3), code & 4, code & 8
        parts: list[tuple[str, str, tuple[int, ...]]] = [(f.name, f.dtype, f.shape) for f in HEADER_FIELDS]
        parts.append(("class", "u1", ()))
        parts += [(f.name, f.dtype, f.shape) for f in _SUMMARY_FIELDS]
        parts += [(f.name, f.dtype, (ring,)) for f in self._ring]
        if labels:
            parts += [(f.name, f.dtype, f.shape) for f in _LABEL_FIELDS]
        if tiles:
            parts += [(f.name, f.dtype, f.shape) for f in self._tiles]
        length, width = self._step.shape
        parts.append(("steps", self._step.dtype, (length if ring == RING else min(ring, length), width)))
        return np.dtype(parts)

    def pack(self, slots: Slots) -> list[bytes]:
        """The rows as bytes, in the order of `slots`."""
        pool = self.pool
        folded = pool["folded"][slots]
        ring_class = np.searchsorted(np.array([8, 16, 32]), np.minimum(folded, RING), side="left")
        codes = ring_class + 4 * (pool["label_count"][slots] > 0) + 8 * (folded > RING)
        return pack_classes(pool, slots, codes, self._dtypes)

    def unpack(self, slots: Slots, rows: Sequence[bytes]) -> None:
        """Fills empty rows from their bytes. ValueError when bytes are of no known class or length."""
        unpack_classes(self.pool, slots, rows, self._dtypes)


def row_offsets(row: bytes) -> tuple[int, int]:
    """The two offsets at the head of a packed row: transactions, labels."""
    transactions, labels = np.frombuffer(row, dtype="<i8", count=2).tolist()
    return transactions, labels


def structured(rows: Sequence[bytes], dtype: np.dtype[np.void]) -> NDArray[np.void]:
    if any(len(row) != dtype.itemsize for row in rows):
        raise ValueError(f"packed rows that are not {dtype.itemsize} bytes long: not written by this version")
    return np.frombuffer(b"".join(rows), dtype=dtype)


def pack_classes(
    pool: RowPool, slots: Slots, codes: NDArray[np.int64], dtypes: dict[int, np.dtype[np.void]]
) -> list[bytes]:
    packed: list[bytes] = [b""] * len(slots)
    for code in np.unique(codes).tolist():
        chosen = np.flatnonzero(codes == code)
        dtype = dtypes[code]
        table = np.zeros(len(chosen), dtype=dtype)
        for name in dtype.names or ():
            shape = table[name].shape[1:]
            if name == "class":
                table[name] = code
            elif len(shape) and shape[0] < pool[name].shape[1]:
                table[name] = pool[name][slots[chosen], : shape[0]]
            else:
                table[name] = pool[name][slots[chosen]]
        whole, size = table.tobytes(), dtype.itemsize
        for place, index in enumerate(chosen.tolist()):
            packed[index] = whole[place * size : (place + 1) * size]
    return packed


def unpack_classes(pool: RowPool, slots: Slots, rows: Sequence[bytes], dtypes: dict[int, np.dtype[np.void]]) -> None:
    class_byte = 16
    codes = np.array([row[class_byte] if len(row) > class_byte else -1 for row in rows], dtype=np.int64)
    for code in np.unique(codes).tolist():
        if code not in dtypes:
            raise ValueError(f"a packed row of class {code}: not written by this version")
        chosen = np.flatnonzero(codes == code)
        dtype = dtypes[code]
        table = structured([rows[i] for i in chosen.tolist()], dtype)
        for name in dtype.names or ():
            shape = table[name].shape[1:]
            if name == "class":
                continue
            if len(shape) and shape[0] < pool[name].shape[1]:
                pool[name][slots[chosen], : shape[0]] = table[name]
            else:
                pool[name][slots[chosen]] = table[name]
