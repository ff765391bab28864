"""What shared entities know before each event of a batch, for the whole batch at once, in closed form.

An entity has its own clock: the newest event time that its partition saw, c_i = max(t_0..t_i). An event
falls into the tile of the clock, so a late one counts as new, and tile numbers never go back along the
log. Hence what event i sees does not depend on where batches were cut: the row's counts that are young
enough, plus, inside the batch, the entity's earlier events. A busy merchant costs one step, not one per
event. Events of one entity and day are a *group*: what is counted by the day is made once for each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream.features.batch import LabelBatch
from stream.features.entity_rows import DAY_MS, FRAUDS, EntityRows, EntityTable, merge, moved_on, tiles
from stream.features.pool import Slots
from stream.features.rows import NEVER, TILES, code_bits, linear_count
from stream.features.spec import Entity

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]
_SEGMENT = 1 << 44
"""Above every clock in milliseconds (the year 2527), so that (segment, clock) sorts as one integer."""


class EntityValues:
    """All kinds of entities in one batch, before each event: computed for all at once, told `of` each kind.

    Of B events and E kinds there are n = E * B pairs, in the order of the kinds. `slots` (n,), of the table, is -1
    where an event has no such entity, is a duplicate, or is already included in the row. All methods give (n,),
    NaN where there is no entity. Values include other partitions' counts where `use_others` is set and some were
    read; `fold` then adds the batch's events to the rows, and must come after the last value was asked for.
    """

    def __init__(
        self,
        table: EntityTable,
        slots: Slots,
        time_ms: I64,
        amount_minor: I64,
        offset: I64,
        account_code: NDArray[np.uint32],
        *,
        use_others: bool,
    ) -> None:
        """All but the first two are of the B events."""
        self.table, self._pairs = table, len(slots)
        active = np.flatnonzero(slots >= 0)
        self.order = order = active[np.argsort(slots[active], kind="stable")]
        event = order % max(len(time_ms), 1)
        self._slot, self._offset = slots[order], offset[event]
        self._amount = np.maximum(amount_minor[event], 0)
        self._account = account_code[event]
        self._starts = _changes(self._slot)
        self._segment = np.cumsum(self._starts) - 1
        self._first = np.flatnonzero(self._starts)  # (U,): position of each entity's first event
        self._own = self._slot[self._first]
        before = table["clock"][self._own]
        self._clock = _running_maximum(np.maximum(time_ms[event], before[self._segment]), self._segment)
        self._day = self._clock // DAY_MS
        group_starts = self._starts | _changes(self._day)
        self._group = np.cumsum(group_starts) - 1
        self._group_first = np.flatnonzero(group_starts)  # (G,)
        self.shared = np.zeros(self._pairs, dtype=np.bool_)
        if use_others:
            read = (table["other_clock"][self._own] > NEVER) | (table["other_last_fraud"][self._own] > NEVER)
            self.shared[order] = read[self._segment]
        self._others = bool(self.shared.any())
        self._kept: dict[tuple[str, ...], NDArray[Any]] = {}
        self._own_days: dict[str, NDArray[Any]] = {}

    def of(self) -> dict[str, KindValues]:
        """The same by kind."""
        entities = self.table.entities
        size = self._pairs // max(len(entities), 1)
        parts = [slice(kind * size, (kind + 1) * size) for kind in range(len(entities))]
        return {entity.name: KindValues(self, entity, part) for entity, part in zip(entities, parts, strict=True)}

    # --- counts of events

    def count(self, window: str) -> F64:
        """The entity's events in the window, before this one."""
        return self._keep(("count", window), lambda: self._spread(self._count(window)))

    def sum(self, window: str) -> F64:
        """Their money in major units, by the day: of a window of a day or more. KeyError for another."""
        return self._keep(("sum", window), lambda: self._spread(self._sum(window) / 100.0))

    def max(self, window: str) -> F64:
        """The largest of them in major units, 0 where there is none; windows and KeyError as for `sum`."""
        return self._keep(("max", window), lambda: self._spread(self._merged("day_max", window)))

    def accounts(self, window: str) -> F64:
        """About how many accounts they were of: linear counting over 64 bits. Windows and KeyError as for `sum`."""
        return self._keep(
            ("accounts", window), lambda: self._spread(linear_count(self._merged("day_accounts", window)))
        )

    def _merged(self, name: str, window: str) -> NDArray[Any]:
        """(n,): of the window's days, and of the earlier events of the day in the batch."""
        merged, values = merge(name), self._each(name)
        before = merged.reduce(self._days(name)[:, : self.table.days[window]], axis=1)[self._group]
        first = self._group_first[self._group]
        until = running(merged, values, np.arange(len(values)) - first)
        earlier = np.zeros_like(values)
        earlier[1:] = until[:-1]
        earlier[self._group_first] = 0
        result: NDArray[Any] = merged(before, earlier)
        return result

    def _each(self, name: str) -> NDArray[Any]:
        """(n,): what each event brings to its day."""
        if name == "day_accounts":
            return code_bits(self._account)
        return (self._amount / 100.0).astype(np.float32) if name == "day_max" else self._amount

    def _count(self, window: str) -> I64:
        if window in self.table.width_ms:
            return self._tiled(window)
        earlier = np.arange(len(self.order)) - self._group_first[self._group]
        count: I64 = self._events_in(0, self.table.days[window])[self._group] + earlier
        return count

    def _sum(self, window: str) -> I64:
        amounts = np.cumsum(self._amount) - self._amount
        earlier = amounts - amounts[self._group_first][self._group]
        total: I64 = self._days("day_sum")[:, : self.table.days[window]].sum(axis=1)[self._group] + earlier
        return total

    def _tiled(self, window: str) -> I64:
        """Events in a short window's sixteen tiles: of the row, and earlier ones of the batch."""
        table, name, width = self.table, tiles(window), self.table.width_ms[window]
        tile = self._clock // width
        head = table["clock"][self._own] // width
        count = _young(table[name][self._own], self._segment, tile - head[self._segment])
        if self._others:
            head = table["other_clock"][self._own] // width
            count += _young(table[f"other_{name}"][self._own], self._segment, tile - head[self._segment])
        composite = self._segment * _SEGMENT + tile
        oldest = np.searchsorted(composite, composite - TILES, side="right")
        oldest = np.maximum(oldest, self._first[self._segment])
        count += np.arange(len(self.order)) - oldest
        return count

    # --- verdicts: by the day of their events

    def frauds(self, window: str, *, unexplained: bool) -> F64:
        """Confirmed frauds among the events of the last (label delay + window)."""
        name = "day_unexplained" if unexplained else "day_fraud"
        until = self.table.delay + self.table.days[window] + 1
        return self._grouped((name, window), lambda: self._frauds_in(name, 0, until))

    def fraud_share(self, window: str, *, unexplained: bool) -> F64:
        """(frauds + 0.01) / (events + 1) of the window before the label delay, the day of arriving labels in part."""

        name = "day_unexplained" if unexplained else "day_fraud"
        delay, end = self.table.delay, self.table.delay + self.table.days[window] + 1

        def compute() -> F64:
            frauds = self._frauds_in(name, delay, end)[self._group]
            whole = self._events_in(delay + 1, end)[self._group]
            arriving = self._events_in(delay, delay + 1)[self._group]
            events = np.maximum(whole + self._elapsed * arriving, frauds)
            return self._spread((frauds + 0.01) / (events + 1.0))

        return self._keep(("share", name, window), compute)

    @cached_property
    def _elapsed(self) -> F64:
        """(n,): how much of its day the clock has behind it."""
        return self._clock % DAY_MS / DAY_MS

    def streak(self, *, unexplained: bool) -> F64:
        """Confirmed frauds since the newest day that brought an event known to be none."""
        return self._grouped(("streak", str(unexplained)), lambda: self._streaks(unexplained)[0])

    def streak_age(self, *, unexplained: bool) -> F64:
        """Days from the first day of that streak; NaN without one."""
        return self._grouped(("streak age", str(unexplained)), lambda: self._streaks(unexplained)[1])

    def days_since_genuine(self) -> F64:
        """Days back to the newest day older than the label delay with an event not confirmed as fraud; NaN if none."""

        def compute() -> F64:
            newest = self._newest_genuine()
            return np.where(newest < self.table.length, newest.astype(np.float64), np.nan)

        return self._grouped(("genuine",), compute)

    def last_fraud_ms(self) -> I64:
        """When a fraud of the entity last became known; NEVER without one: (n,) int64."""

        def compute() -> I64:
            known = self.table["last_fraud"][self._own]
            if self._others:
                known = np.maximum(known, self.table["other_last_fraud"][self._own])
            result = np.full(self._pairs, NEVER, dtype=np.int64)
            result[self.order] = known[self._segment]
            return result

        return self._keep(("last fraud",), compute)

    def _newest_genuine(self) -> I64:
        """(G,): places back to the newest day with a known genuine event; the row's length where there is none."""

        def compute() -> I64:
            genuine = self._days("day_count")[:, self.table.delay :] > 0
            if len(chosen := self._judged):
                frauds = np.maximum(self._judged_days("day_fraud")[:, self.table.delay :], 0)
                genuine[chosen] = self._days("day_count")[chosen, self.table.delay :] > frauds
            newest = self.table.delay + genuine.argmax(axis=1)
            return np.where(genuine.any(axis=1), newest, self.table.length)

        return self._keep(("newest genuine",), compute)

    def _streaks(self, unexplained: bool) -> F64:
        """(2, G): length and age of the streak of each group."""

        def compute() -> F64:
            length, age = np.zeros(len(self._group_first)), np.full(len(self._group_first), np.nan)
            if len(self._judged):
                frauds = self._judged_days("day_unexplained" if unexplained else "day_fraud")
                place = np.arange(self.table.length)
                streak = (frauds > 0) & (place < self._newest_genuine()[self._judged, None])
                length[self._judged] = np.where(streak, frauds, 0).sum(axis=1)
                oldest = np.where(streak, place, -1).max(axis=1)
                age[self._judged] = np.where(oldest >= 0, oldest, np.nan)
            return np.stack([length, age])

        return self._keep(("streaks", str(unexplained)), compute)

    @cached_property
    def _judged(self) -> I64:
        """(J,): the groups, mostly few, whose entity ever had a fraud, here or in another partition."""
        table = self.table
        judged = table["judged"][self._own] | (table["other_judged"][self._own] if self._others else 0)
        return np.flatnonzero(judged[self._segment[self._group_first]])

    def _judged_days(self, name: str) -> NDArray[np.int32]:
        """(J, K): frauds by age in days, of the judged groups."""

        def compute() -> NDArray[np.int32]:
            first = self._group_first[self._judged]
            row, table = self._slot[first], self.table
            days = moved_on(table[name][row], self._day[first] - table["clock"][row] // DAY_MS)
            if self._others:
                behind = self._day[first] - table["other_clock"][row] // DAY_MS
                days = days + moved_on(table[f"other_{name}"][row], behind)
            return table.within(days, row)

        return self._keep(("judged", name), compute)

    def _frauds_in(self, name: str, start: int, end: int) -> I64:
        """(G,): of the days in [start, end) back."""
        frauds = np.zeros(len(self._group_first), dtype=np.int64)
        if len(self._judged):
            frauds[self._judged] = np.maximum(self._judged_days(name)[:, start:end].sum(axis=1), 0)
        return frauds

    # --- days by group

    def _days(self, name: str) -> NDArray[Any]:
        """(G, K): counts by age in days as they stood at each group's day, before its events."""

        def compute() -> NDArray[Any]:
            own = self._own_day(name)
            if not self._others:
                return own
            table, segment = self.table, self._segment[self._group_first]
            behind = self._day[self._group_first] - (table["other_clock"][self._own] // DAY_MS)[segment]
            others = moved_on(table[f"other_{name}"][self._own][segment], behind)
            return table.within(merge(name)(own, others), self._own[segment])

        return self._keep(("days", name), compute)

    def _own_day(self, name: str) -> NDArray[Any]:
        """The same of the own partition alone; kept for the fold."""
        found = self._own_days.get(name)
        if found is not None:
            return found
        table, first = self.table, self._group_first
        day, opening = self._day[first], self._starts[first]
        opened = np.flatnonzero(opening)
        rank = np.arange(len(first)) - opened[np.cumsum(opening) - 1]  # days of the entity before, in the batch
        days: NDArray[Any] = np.empty((len(first), table.length), table[name].dtype)
        days[opened] = moved_on(table[name][self._own], self._since_clock(day[opened], DAY_MS))
        for later in range(1, int(rank.max(initial=0)) + 1):
            chosen = np.flatnonzero(rank == later)
            past = days[chosen - 1]
            past[:, 0] = merge(name)(past[:, 0], self._brought(name)[chosen - 1])
            days[chosen] = moved_on(past, day[chosen] - day[chosen - 1])
        self._own_days[name] = table.within(days, self._slot[first])
        return self._own_days[name]

    def _since_clock(self, number: I64, width_ms: int) -> I64:
        """(U,): from the tile of each row's clock to this one; 0 for a new row, which is empty anyway."""
        clock = self.table["clock"][self._own]
        return np.where(clock > NEVER, number - clock // width_ms, 0)

    def _brought(self, name: str) -> NDArray[Any]:
        """(G,): what the events of each group bring to its day."""
        if name == "day_count":
            return np.diff(self._group_first, append=len(self.order))
        brought: NDArray[Any] = merge(name).reduceat(self._each(name), self._group_first)
        return brought

    def _events_in(self, start: int, end: int) -> I64:
        """(G,): events of the days in [start, end) back."""

        def compute() -> I64:
            days = self._days("day_count")
            sums = np.zeros((days.shape[0], days.shape[1] + 1), dtype=np.int64)
            np.cumsum(days, axis=1, out=sums[:, 1:])
            return sums

        sums = self._keep(("sums",), compute)
        total: I64 = sums[:, end] - sums[:, start]
        return total

    # --- from groups and entities to events

    def _grouped(self, key: tuple[str, ...], compute: Callable[[], NDArray[Any]]) -> F64:
        return self._keep(key, lambda: self._spread(compute()[self._group]))

    def _spread(self, values: NDArray[Any]) -> F64:
        """Values in the order of entities to those in the order of events."""
        result = np.full(self._pairs, np.nan)
        result[self.order] = values
        return result

    def _keep(self, key: tuple[str, ...], compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        value = self._kept.get(key)
        if value is None:
            value = self._kept[key] = compute()
        return value

    # --- the rows after the batch

    def fold(self) -> None:
        """Adds the batch's events to the rows of their entities."""
        if not len(self.order):
            return
        table, last = self.table, np.flatnonzero(np.append(self._starts[1:], True))
        for window, width in table.width_ms.items():
            passed = self._since_clock(self._clock[last] // width, width)
            self._fold_tiles(tiles(window), self._clock // width, passed, last)
        passed = self._since_clock(self._day[last], DAY_MS)
        same = (passed == 0) & (self._group[last] == self._group[self._first])
        still, moved = np.flatnonzero(same), np.flatnonzero(~same)
        for name in table.counted_days:
            brought, merged = self._brought(name)[self._group[last]].astype(table[name].dtype), merge(name)
            today = self._own[still]
            table[name][today, 0] = merged(table[name][today, 0], brought[still])
            if len(moved):
                days = self._closing_days(name, moved, passed, last)
                days[:, 0] = merged(days[:, 0], brought[moved])
                table[name][self._own[moved]] = days
        for name in FRAUDS:
            chosen = moved[table["judged"][self._own[moved]] > 0]
            row = self._own[chosen]
            table[name][row] = table.within(moved_on(table[name][row], passed[chosen]), row)
        table["clock"][self._own] = self._clock[last]
        table["offset"][self._own] = self._offset[last] + 1
        table["dirty"][self._own] = True

    def _closing_days(self, name: str, moved: I64, passed: I64, last: I64) -> NDArray[Any]:
        """The moved entities' counts as they stand at their last day in the batch, before its events."""
        if len(self._group_first) == len(self._own):  # each has one day
            row = self._own[moved]
            return self.table.within(moved_on(self.table[name][row], passed[moved]), row)
        days: NDArray[Any] = self._own_day(name)[self._group[last[moved]]]
        return days

    def _fold_tiles(self, name: str, tile: I64, passed: I64, last: I64) -> None:
        """`tile` (m,) of each pair with an entity; `passed` (U,): from the row's tile to the entity's last one."""
        counts, newest = self.table[name], tile[last]
        same = (passed == 0) & (tile[self._first] == newest)
        still, moved = np.flatnonzero(same), np.flatnonzero(~same)
        counts[self._own[still], 0] += (last - self._first + 1)[still].astype(np.int32)
        if len(moved):
            place = np.full(len(self._own), -1)
            place[moved] = np.arange(len(moved))
            age = newest[self._segment] - tile
            young = (age < TILES) & ~same[self._segment]
            brought = np.bincount(place[self._segment[young]] * TILES + age[young], minlength=len(moved) * TILES)
            before = moved_on(counts[self._own[moved]], passed[moved])
            counts[self._own[moved]] = before + brought.reshape(before.shape)


class KindValues:
    """What the entities of one kind know before each event: (B,) each, as `EntityValues` says.

    KeyError for a window that the entity does not declare.
    """

    def __init__(self, values: EntityValues, entity: Entity, part: slice) -> None:
        self._values, self._entity, self._part = values, entity, part

    def count(self, window: str) -> F64:
        return self._values.count(self._declared(window))[self._part]

    def sum(self, window: str) -> F64:
        return self._values.sum(self._declared(window))[self._part]

    def max(self, window: str) -> F64:
        return self._values.max(self._declared(window))[self._part]

    def accounts(self, window: str) -> F64:
        return self._values.accounts(self._declared(window))[self._part]

    def frauds(self, window: str, *, unexplained: bool) -> F64:
        return self._values.frauds(self._declared(window), unexplained=unexplained)[self._part]

    def fraud_share(self, window: str, *, unexplained: bool) -> F64:
        return self._values.fraud_share(self._declared(window), unexplained=unexplained)[self._part]

    def streak(self, *, unexplained: bool) -> F64:
        return self._values.streak(unexplained=unexplained)[self._part]

    def streak_age(self, *, unexplained: bool) -> F64:
        return self._values.streak_age(unexplained=unexplained)[self._part]

    def days_since_genuine(self) -> F64:
        return self._values.days_since_genuine()[self._part]

    def last_fraud_ms(self) -> I64:
        return self._values.last_fraud_ms()[self._part]

    def _declared(self, window: str) -> str:
        if window not in self._entity.windows:
            raise KeyError(window)
        return window


def fold_labels(rows: EntityRows, slots: Slots, batch: LabelBatch, change: I64, unexplained: I64) -> None:
    """Counts L labels on the days of their events: `change` and `unexplained` are +1, -1 (a revision) or 0.

    `slots` is -1 where there is nothing to do; the labels are in offset order. An event later than the
    entity's clock counts on the day of the clock, one older than the row remembers not at all.
    """
    active = np.flatnonzero(slots >= 0)
    if not len(active):
        return
    pool, slot = rows.pool, slots[active]
    clock = pool["clock"][slot]
    place = np.maximum(clock // DAY_MS - batch.time_ms[active] // DAY_MS, 0)
    counted = (clock > NEVER) & (place < rows.length)
    at = slot[counted], place[counted]
    pool["judged"][slot[counted & (change[active] != 0)]] = 1
    np.add.at(pool["day_fraud"], at, change[active][counted])
    np.add.at(pool["day_unexplained"], at, unexplained[active][counted])
    confirmed = change[active] > 0
    np.maximum.at(pool["last_fraud"], slot[confirmed], batch.known_ms[active][confirmed])
    np.maximum.at(pool["labels_offset"], slot, batch.offset[active] + 1)
    pool.dirty[slot] = True


def running(merged: np.ufunc, values: NDArray[Any], place: I64) -> NDArray[Any]:
    """(n,): all values of the run up to and with each, merged; `place` (n,) is the place within its run.

    For what may be merged twice, as a maximum may. In steps that double, as Hillis and Steele, "Data
    parallel algorithms", CACM 1986.
    """
    result, step = values.copy(), 1
    while step <= place.max(initial=0):
        far = np.flatnonzero(place >= step)
        result[far] = merged(result[far], result[far - step])
        step *= 2
    return result


def _changes(values: I64) -> Bools:
    """Where a value differs from the one before it; the first does."""
    different = np.ones(len(values), dtype=np.bool_)
    np.not_equal(values[1:], values[:-1], out=different[1:])
    return different


def _running_maximum(values: I64, segment: I64) -> I64:
    """Running maximum within each segment: (n,)."""
    return np.maximum.accumulate(values + segment * _SEGMENT) - segment * _SEGMENT


def _young(tiles: NDArray[np.int32], segment: I64, passed: I64) -> I64:
    """(n,): sum of a row's tiles that are still in the window when its clock's tile is `passed` back.

    `tiles` (U, 16) by age. Negative `passed`: tiles later than the event are left out.
    """
    sums = np.zeros((len(tiles), TILES + 1), dtype=np.int64)
    np.cumsum(tiles, axis=1, out=sums[:, 1:])
    end, start = np.clip(TILES - passed, 0, TILES), np.clip(-passed, 0, TILES)
    count: I64 = sums[segment, end] - sums[segment, start]
    return count
