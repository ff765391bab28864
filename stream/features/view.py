"""What an operator sees: one event each of n different accounts, and the accounts' rows before it.

Values are computed when first asked for and kept for the round, so operators that share a window share
the work. Everything is (n,) float64 unless said otherwise; NaN means missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.features.batch import EventBatch
from stream.features.entities import EntityValues
from stream.features.pool import Slots
from stream.features.rows import NEVER, TILES, AccountRows, EntityRows, code_bits
from stream.features.spec import window_ms

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

LOG_SCALE = 1000
"""The norm's sums hold round(1000 * ln(1 + amount)): integers, so that fraud can be taken out again."""
_EARTH_KM = 6371.0088
_WIDTH_BITS = 64


@dataclass(slots=True)
class EntityColumns:
    """Values of one entity kind for the batch, by scope: `own` partition, or `all` that are known."""

    rows: EntityRows
    own: EntityValues
    all: EntityValues


class View:
    """One round. `index` are the batch positions of its events, `slots` the accounts' rows."""

    def __init__(
        self,
        batch: EventBatch,
        codes: dict[str, NDArray[np.uint32]],
        entities: dict[str, EntityColumns],
        accounts: AccountRows,
        index: I64,
        slots: Slots,
    ) -> None:
        self._batch, self._codes, self._entities = batch, codes, entities
        self._accounts, self.index, self.slots = accounts, index, slots
        self.time_ms: I64 = batch.time_ms[index]
        self.amount_minor: I64 = batch.amount_minor[index]
        self.scope = "own"
        self._kept: dict[tuple[str, ...], NDArray[Any]] = {}
        self._entity_values: dict[tuple[str, str], EntityValues] = {}
        self._tiles: dict[str, tuple[I64, Bools, int]] = {}

    # --- the event itself

    @property
    def amount(self) -> F64:
        """In major units of the base currency; NaN without a rate."""
        return self._keep(("amount",), lambda: np.where(self.amount_minor < 0, np.nan, self.amount_minor / 100.0))

    @property
    def log_amount(self) -> F64:
        return self._keep(("log_amount",), lambda: np.log1p(self.amount))

    def category(self, field: str) -> F64:
        """Category code; 0 is missing."""
        return self._batch.categories[field][self.index].astype(np.float64)

    # --- the account's ring

    def row(self, name: str) -> NDArray[Any]:
        """A field of the account's row before the event: (n, *shape)."""
        return self._keep(("row", name), lambda: self._accounts.pool[name][self.slots])

    @property
    def age_ms(self) -> I64:
        """(n, 64): age of each remembered event at this one; negative for those of later times."""
        return self._keep(("age",), lambda: self.time_ms[:, None] - self.row("ring_time"))

    @property
    def inside_all(self) -> Bools:
        """(n, W, 64): remembered events in (t - window, t] of each of the domain's windows."""

        def compute() -> Bools:
            age = self.age_ms[:, None, :]
            return (age >= 0) & (age < self._accounts.window_ms[:, None])

        return self._keep(("inside",), compute)

    def inside(self, window: str) -> Bools:
        """(n, 64): the same of one window."""
        return self.inside_all[:, self._window(window)]

    def _window(self, window: str) -> int:
        return self._accounts.windows.index(window)

    def same(self, field: str) -> Bools:
        """(n, 64): remembered events with this event's code of `field`; none where it is missing."""
        code = self._codes[field][self.index]
        return self._keep(("same", field), lambda: (self.row(f"code_{field}") == code[:, None]) & (code != 0)[:, None])

    def count(self, window: str) -> F64:
        """Events in the window, this one included."""
        remembered = self._keep(("counts",), lambda: np.count_nonzero(self.inside_all, axis=2))
        return self._keep(
            ("count", window), lambda: remembered[:, self._window(window)] + 1.0 + self._tiled("tile_count", window)
        )

    def sum(self, window: str) -> F64:
        """Sum of amounts in the window in major units, this one included; no rate counts as 0."""

        def remembered() -> I64:
            amounts: I64 = np.maximum(self.row("ring_amount"), 0)[:, None, :]
            sums: I64 = np.where(self.inside_all, amounts, 0).sum(axis=2)
            return sums

        def compute() -> F64:
            inside = self._keep(("sums",), remembered)[:, self._window(window)]
            total: I64 = inside + np.maximum(self.amount_minor, 0) + self._tiled("tile_sum", window)
            return total / 100.0

        return self._keep(("sum", window), compute)

    def distinct(self, field: str, window: str) -> F64:
        """Different codes of `field` in the window, this event's included; missing ones don't count."""

        def compute() -> F64:
            newest = self._keep(("others", field), lambda: self.row(f"newest_{field}") & ~self.same(field))
            known = np.count_nonzero(self.inside(window) & newest, axis=1)
            late = np.flatnonzero(self.time_ms < self.row("newest"))
            if len(late):  # the newest of a code may lie after a late event, an older one before it
                others = self.inside(window)[late] & ~self.same(field)[late]
                codes = np.sort(np.where(others, self.row(f"code_{field}")[late], 0), axis=1)
                known[late] = (np.diff(codes, axis=1) != 0).sum(axis=1) + (codes[:, 0] != 0)
            exact = (known + (self._codes[field][self.index] != 0)).astype(np.float64)
            return self._tiled_distinct(field, window, exact) if field == self._accounts.tile_field else exact

        return self._keep(("distinct", field, window), compute)

    def since_same(self, field: str) -> F64:
        """Seconds since the account's last remembered event with the same code of `field`; NaN if none."""

        def compute() -> F64:
            candidates = self.same(field) & (self.age_ms >= 0) & (self.row("ring_time") > NEVER)
            age = np.where(candidates, self.age_ms, np.iinfo(np.int64).max).min(axis=1)
            return np.where(candidates.any(axis=1), age / 1000.0, np.nan)

        return self._keep(("since_same", field), compute)

    @property
    def gap(self) -> F64:
        """Seconds since the account's last event at or before this one; NaN for the first."""

        def compute() -> F64:
            valid = (self.age_ms >= 0) & (self.row("ring_time") > NEVER)
            age = np.where(valid, self.age_ms, np.iinfo(np.int64).max).min(axis=1)
            return np.where(valid.any(axis=1), age / 1000.0, np.nan)

        return self._keep(("gap",), compute)

    @property
    def saturated(self) -> Bools:
        """(n,): an event that left the ring is later than the start of the longest window."""
        return self.row("left") > self.time_ms - self._accounts.horizon_ms

    # --- the account's own norm

    @property
    def norm_count(self) -> F64:
        return self._keep(("norm_n",), lambda: np.maximum(self.row("norm_n"), 0).astype(np.float64))

    @property
    def norm_mean(self) -> F64:
        """Mean of ln(1 + amount) over the account's past, confirmed fraud excluded; NaN without a past."""

        def compute() -> F64:
            n = self.norm_count
            # A label of an event that was never seen here may take out more than there is.
            total = np.maximum(self.row("norm_sum"), 0)
            return np.where(n > 0, total / np.maximum(n, 1.0) / LOG_SCALE, np.nan)

        return self._keep(("norm_mean",), compute)

    @property
    def norm_spread(self) -> F64:
        """Standard deviation of ln(1 + amount), shrunk towards 1 as if by two events of spread 1."""

        def compute() -> F64:
            n = self.norm_count
            mean = np.where(n > 0, self.row("norm_sum") / np.maximum(n, 1.0), 0.0)
            squares = np.maximum(self.row("norm_squares") - n * mean * mean, 0.0) / LOG_SCALE**2
            return np.sqrt((squares + 2.0) / (n + 2.0))

        return self._keep(("norm_spread",), compute)

    # --- place

    @property
    def distance_km(self) -> F64:
        """Great-circle distance from the account's last known place (haversine); NaN where unknown."""

        def compute() -> F64:
            known = self.row("place_time") > NEVER
            here = np.radians(self._batch.latitude[self.index]), np.radians(self._batch.longitude[self.index])
            there = np.radians(self.row("place_latitude")), np.radians(self.row("place_longitude"))
            half = np.sin((here[0] - there[0]) / 2) ** 2
            half = half + np.cos(here[0]) * np.cos(there[0]) * np.sin((here[1] - there[1]) / 2) ** 2
            return np.where(known, 2 * _EARTH_KM * np.arcsin(np.sqrt(np.clip(half, 0, 1))), np.nan)

        return self._keep(("distance",), compute)

    @property
    def speed_kmh(self) -> F64:
        """Distance over the time since the last known place, at least one minute; NaN where unknown."""

        def compute() -> F64:
            known = self.row("place_time") > NEVER
            elapsed = np.where(known, np.abs(self.time_ms - self.row("place_time")), 0)
            return self.distance_km / (np.maximum(elapsed, 60_000) / 3_600_000.0)

        return self._keep(("speed",), compute)

    # --- shared entities

    def entity(self, kind: str) -> EntityValues:
        """Values of the entity by the view's scope: count, sum and frauds are (n, W) over its windows."""
        key = (kind, self.scope)
        values = self._entity_values.get(key)
        if values is None:
            columns = self._entities[kind]
            whole, index = columns.own if self.scope == "own" else columns.all, self.index
            values = self._entity_values[key] = EntityValues(
                whole.count[index],
                whole.sum_minor[index],
                whole.fraud[index],
                whole.last_fraud[index],
                whole.present[index],
            )
        return values

    def entity_window(self, kind: str, window: str) -> int:
        """Position of the window among the entity's windows."""
        return self._entities[kind].rows.entity.windows.index(window)

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
        result[rows] += np.round(_linear_count(union) - _linear_count(ring))
        return result

    def _keep(self, key: tuple[str, ...], compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        value = self._kept.get(key)
        if value is None:
            value = self._kept[key] = compute()
        return value


def _linear_count(bits: NDArray[np.uint64]) -> F64:
    """How many values set these bits, (n,)."""
    empty = np.maximum(_WIDTH_BITS - np.bitwise_count(bits).astype(np.float64), 1.0)
    return -_WIDTH_BITS * np.log(empty / _WIDTH_BITS)
