"""What an account's operator sees: one event each of n different accounts, and the accounts' rows before it.

Values are computed when first asked for and kept for the round, so operators that share a window share
the work. Everything is (n,) float64 unless said otherwise; NaN means missing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.features.event_view import EventView
from stream.features.norm import norm_mean, norm_spread
from stream.features.pool import Slots
from stream.features.rows import NEVER, TILES, AccountRows, code_bits, linear_count
from stream.features.spec import window_ms
from stream.features.verdicts import NO_AGE, Verdicts, count_true

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

_EARTH_KM = 6371.0088


class View:
    """One round. `index` are the batch positions of its events, `slots` the accounts' rows."""

    def __init__(
        self,
        event: EventView,
        codes: dict[str, NDArray[np.uint32]],
        accounts: AccountRows,
        index: I64,
        slots: Slots,
    ) -> None:
        self._event, self._codes = event, codes
        self._accounts, self.index, self.slots = accounts, index, slots
        self.time_ms: I64 = event.time_ms[index]
        self.amount_minor: I64 = event.batch.amount_minor[index]
        self._kept: dict[tuple[str, ...], NDArray[Any]] = {}
        self._tiles: dict[str, tuple[I64, Bools, int]] = {}

    # --- the event itself

    @cached_property
    def log_amount(self) -> F64:
        return self._event.log_amount[self.index]

    def code(self, field: str) -> NDArray[np.uint32]:
        """Code of an entity or category that the ring keeps; 0 is missing."""
        return self._codes[field][self.index]

    # --- the account's ring

    def row(self, name: str) -> NDArray[Any]:
        """A field of the account's row before the event: (n, *shape)."""
        return self._keep(("row", name), lambda: self._accounts.pool[name][self.slots])

    @cached_property
    def age_ms(self) -> NDArray[np.uint64]:
        """(n, 64): age of each remembered event at this one. Those of later times, and empty places, are beyond
        any window, because a negative age becomes a huge one.
        """
        age: NDArray[np.uint64] = (self.time_ms[:, None] - self.row("ring_time")).view(np.uint64)
        return age

    def inside(self, window: str) -> Bools:
        """(n, 64): remembered events in (t - window, t]."""
        return self.younger(window_ms(window))

    def younger(self, age_ms: int) -> Bools:
        """(n, 64): remembered events in (t - age, t]."""
        return self._keep(("younger", str(age_ms)), lambda: self.age_ms < np.uint64(age_ms))

    def same(self, field: str) -> Bools:
        """(n, 64): remembered events with this event's code of `field`; none where it is missing."""
        code = self.code(field)
        return self._keep(("same", field), lambda: (self.row(f"code_{field}") == code[:, None]) & (code != 0)[:, None])

    def count(self, window: str) -> F64:
        """Events in the window, this one included."""
        return self._keep(
            ("count", window), lambda: count_true(self.inside(window)) + 1.0 + self._tiled("tile_count", window)
        )

    @cached_property
    def _ring_minor(self) -> I64:
        """(n, 64): remembered amounts; no rate counts as 0."""
        amounts: I64 = np.maximum(self.row("ring_amount"), 0)
        return amounts

    def _minor_inside(self, window: str) -> I64:
        """(n, 64): amounts of the remembered events in the window, 0 elsewhere."""
        minor: I64 = self._keep(("minor", window), lambda: self._ring_minor * self.inside(window))
        return minor

    def sum(self, window: str) -> F64:
        """Sum of amounts in the window in major units, this one included; no rate counts as 0."""

        def compute() -> F64:
            remembered: I64 = self._minor_inside(window).sum(axis=1)
            total = remembered + np.maximum(self.amount_minor, 0) + self._tiled("tile_sum", window)
            return total / 100.0

        return self._keep(("sum", window), compute)

    def largest_minor(self, window: str) -> I64:
        """Largest remembered amount in the window, in minor units, int64; 0 if there is none."""
        return self._keep(("largest", window), lambda: self._minor_inside(window).max(axis=1))

    def distinct(self, field: str, window: str) -> F64:
        """Different codes of `field` in the window, this event's included; missing ones don't count."""

        def compute() -> F64:
            newest = self._keep(("others", field), lambda: self.row(f"newest_{field}") & ~self.same(field))
            known = count_true(self.inside(window) & newest)
            late = np.flatnonzero(self.time_ms < self.row("newest"))
            if len(late):  # the newest of a code may lie after a late event, an older one before it
                others = self.inside(window)[late] & ~self.same(field)[late]
                codes = np.sort(np.where(others, self.row(f"code_{field}")[late], 0), axis=1)
                known[late] = (np.diff(codes, axis=1) != 0).sum(axis=1) + (codes[:, 0] != 0)
            exact = (known + (self.code(field) != 0)).astype(np.float64)
            return self._tiled_distinct(field, window, exact) if field == self._accounts.tile_field else exact

        return self._keep(("distinct", field, window), compute)

    def since_same(self, field: str) -> F64:
        """Seconds since the account's last remembered event with the same code of `field`; NaN if none."""
        return self._keep(("since_same", field), lambda: _least(self.age_ms, self.same(field)) / 1000.0)

    @cached_property
    def gap(self) -> F64:
        """Seconds since the account's last event at or before this one; NaN for the first."""
        age = self.age_ms.min(axis=1)
        return np.where(age < NO_AGE, age.astype(np.float64) / 1000.0, np.nan)

    @cached_property
    def saturated(self) -> Bools:
        """(n,): an event that left the ring is later than the start of the longest window."""
        return self.row("left") > self.time_ms - self._accounts.horizon_ms

    @cached_property
    def verdicts(self) -> Verdicts:
        """What is known of the account's own events."""
        pool, judged = self._accounts.pool, np.flatnonzero(self.row("label_count"))
        return Verdicts(self.age_ms, judged, pool["ring_verdict"][self.slots[judged]], self._accounts.delay_ms)

    # --- the account's own norm and habits

    @cached_property
    def norm_mean(self) -> F64:
        """Mean of ln(1 + amount) over the account's past; NaN without a past."""
        return norm_mean(self.row("norm_n"), self.row("norm_sum"))

    @cached_property
    def norm_spread(self) -> F64:
        """Standard deviation of ln(1 + amount), shrunk towards 1 as if by two events of spread 1."""
        return norm_spread(self.row("norm_n"), self.row("norm_sum"), self.row("norm_squares"))

    @cached_property
    def usual_minor(self) -> F64:
        """The usual amount in whole minor units, 1 at least; NaN without a past."""
        return np.maximum(np.rint(100.0 * np.expm1(self.norm_mean)), 1.0)

    def excess(self, window: str, above: float) -> F64:
        """Money above `above` times the usual amount, in usual amounts: of remembered events in the window."""
        known = self.row("norm_n") > 0
        bound = np.where(known, np.rint(above * np.where(known, self.usual_minor, 0.0)), 0).astype(np.int64)
        over: I64 = np.maximum(self._minor_inside(window) - bound[:, None], 0).sum(axis=1)
        return over / self.usual_minor

    def share_of_past(self, events: NDArray[Any]) -> F64:
        """Of the events that the account's habits count; NaN without any."""
        total = self._keep(("habits",), lambda: self.row("hours").sum(axis=1))
        return np.where(total > 0, events / np.maximum(total, 1), np.nan)

    # --- place

    @cached_property
    def distance_km(self) -> F64:
        """Great-circle distance from the account's last known place (haversine); NaN where unknown."""

        batch, index = self._event.batch, self.index
        known = self.row("place_time") > NEVER
        here = np.radians(batch.latitude[index]), np.radians(batch.longitude[index])
        there = np.radians(self.row("place_latitude")), np.radians(self.row("place_longitude"))
        half = np.sin((here[0] - there[0]) / 2) ** 2
        half = half + np.cos(here[0]) * np.cos(there[0]) * np.sin((here[1] - there[1]) / 2) ** 2
        return np.where(known, 2 * _EARTH_KM * np.arcsin(np.sqrt(np.clip(half, 0, 1))), np.nan)

    @cached_property
    def speed_kmh(self) -> F64:
        """Distance over the time since the last known place, at least one minute; NaN where unknown."""

        known = self.row("place_time") > NEVER
        elapsed = np.where(known, np.abs(self.time_ms - self.row("place_time")), 0)
        return self.distance_km / (np.maximum(elapsed, 60_000) / 3_600_000.0)

    # --- tiles of what left the ring

    def _tiled(self, name: str, window: str) -> I64:
        """(n,): sum of a tile field over the window's young tiles; 0 for accounts of at most 64 events."""

        def compute() -> I64:
            result = np.zeros(len(self.slots), dtype=np.int64)
            big, young, w = self._young_tiles(window)
            if len(big):
                values = self._accounts.pool[name][self.slots[big], w]
                result[big] = np.where(young, values, 0).sum(axis=1)
            return result

        return self._keep((name, window), compute)

    def _young_tiles(self, window: str) -> tuple[I64, Bools, int]:
        """Events (k,) of accounts with something in the window's tiles, which tiles (k, 16), and the window's place."""
        if window not in self._tiles:
            w = self._accounts.windows.index(window)
            big = np.flatnonzero(self.row("left") > self.time_ms - window_ms(window))
            tile = self.time_ms[big] // (window_ms(window) // TILES)
            epoch = self._accounts.pool["tile_epoch"][self.slots[big], w]
            young = (epoch > (tile - TILES)[:, None]) & (epoch <= tile[:, None]) & (epoch >= 0)
            self._tiles[window] = big, young, w
        return self._tiles[window]

    def _tiled_distinct(self, field: str, window: str, exact: F64) -> F64:
        """Beyond the ring: what the tiles' bits add, by linear counting over 64 bits (Whang et al. 1990)."""
        big, young, w = self._young_tiles(window)
        chosen = young.any(axis=1)
        if not chosen.any():
            return exact
        rows = big[chosen]
        bits = np.where(young[chosen], self._accounts.pool["tile_bits"][self.slots[rows], w], np.uint64(0))
        codes = np.where(self.inside(window)[rows], self.row(f"code_{field}")[rows], np.uint32(0))
        codes = np.concatenate((codes, self._codes[field][self.index[rows], None]), axis=1)
        ring = np.bitwise_or.reduce(code_bits(codes), axis=1)
        union = ring | np.bitwise_or.reduce(bits, axis=1)
        result = exact.copy()
        result[rows] += np.round(linear_count(union) - linear_count(ring))
        return result

    def _keep(self, key: tuple[str, ...], compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        value = self._kept.get(key)
        if value is None:
            value = self._kept[key] = compute()
        return value


def _least(age_ms: NDArray[np.uint64], chosen: Bools) -> F64:
    """(n,): the least age among the chosen, NaN if none is of the past."""
    age = np.where(chosen, age_ms, NO_AGE).min(axis=1)
    return np.where(age < NO_AGE, age.astype(np.float64), np.nan)
