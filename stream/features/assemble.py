"""Rows and events to vectors: the one implementation that serves, replays and makes training data.

A pure function of (rows, events): no clock, no randomness, no model output, and the same bits however
the log was cut into batches. Events of one account are folded in rounds, round k taking the k-th event
of every account, so a round is one vectorised step; shared entities need no rounds (entities.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from stream.errors import ConfigError
from stream.features import labels
from stream.features.batch import Assembled, EventBatch, LabelBatch
from stream.features.duplicates import find_duplicates
from stream.features.entities import EntityValues, fold_labels
from stream.features.entity_rows import EntityRows, EntityTable
from stream.features.event_view import EventView
from stream.features.norm import LOG_SCALE, NORM, clipped_to_norm, is_weekend
from stream.features.operators import AccountOperator, EventOperator, Operator
from stream.features.pool import RowPool, Slots
from stream.features.rows import NEVER, NO_VERDICT, RING, TILES, AccountRows, code_bits, tile_widths_ms
from stream.features.spec import Domain, Feature
from stream.features.view import View

I64 = NDArray[np.int64]
_FLOAT16_LIMIT = 60_000.0
_LATEST = np.iinfo(np.int64).max

RowName = tuple[str, int, str]
"""Kind of row ("account" or an entity's name), partition, identity."""


@dataclass(slots=True)
class Located:
    """Slots of a batch's rows, -1 where a row is not in memory (or the event has no such entity)."""

    accounts: Slots
    entities: dict[str, Slots]


class FeatureState:
    """All rows of one worker, for one domain. Not thread-safe: the engine's thread owns it."""

    def __init__(
        self, domain: Domain, *, accounts: int = 131_072, entities: int = 65_536, use_others: bool = True
    ) -> None:
        """`accounts` and `entities` bound the rows in memory; `use_others` lets other partitions' values in."""
        self.domain = domain
        self.use_others = use_others
        operators = cast(Sequence[Operator], (*domain.step, *domain.aggregates))
        self._step, self._aggregates = Vector(domain.step), Vector(domain.aggregates)
        fields = dict.fromkeys(field for op in operators for field in op.same_fields)
        distinct = dict.fromkeys(f for op in operators if hasattr(op, "counts_distinct") for f in op.same_fields)
        self.accounts = AccountRows(domain, accounts, tuple(fields), tuple(distinct))
        kept = {entity.name: _kept(operators, entity.name) for entity in domain.entities}
        self.entity_table = EntityTable(domain.entities, domain.label_delay, entities, kept)
        self.entities = self.entity_table.rows
        self._widths_ms = tile_widths_ms(domain.windows)
        self._located: tuple[EventBatch | LabelBatch, Located] | None = None

    # --- rows in and out of memory

    def next_turn(self) -> None:
        """Rows of earlier turns may be evicted from now on."""
        self._located = None  # looking up again pins the rows for the new turn
        for pool in self.pools():
            pool.next_turn()

    def pools(self) -> list[RowPool]:
        """In the order in which a flush writes them."""
        return [self.accounts.pool, *(rows.pool for rows in self.entities.values())]

    def pool(self, kind: str) -> RowPool:
        """The pool of "account" or of an entity kind."""
        return self._rows(kind).pool

    def entity_slots(self, batch: EventBatch) -> Slots:
        """The table's slots of the batch's entities that are in memory, each once, in ascending order."""
        slots = self.entity_table.stacked(self._locate(batch).entities)
        return np.unique(slots[slots >= 0])

    def missing(self, batch: EventBatch | LabelBatch) -> list[RowName]:
        """The rows that the batch needs and that are not in memory, each once, accounts first."""
        located = self._locate(batch)
        names: dict[RowName, None] = {}
        partition = batch.partition.tolist()
        for i in np.flatnonzero(located.accounts < 0).tolist():
            names[("account", partition[i], batch.accounts[i])] = None
        for kind, slots in located.entities.items():
            identities = batch.entities[kind]
            for i in np.flatnonzero(slots < 0).tolist():
                identity = identities[i]
                if identity is not None:
                    names[(kind, partition[i], identity)] = None
        return list(names)

    def admit(self, names: Sequence[RowName], keys: Sequence[bytes], rows: Sequence[bytes | None]) -> None:
        """Takes rows into memory: as packed, or new where None. ArenaFullError when there is no room."""
        self._located = None
        groups: dict[tuple[str, int], list[int]] = {}
        for i, (kind, partition, _) in enumerate(names):
            groups.setdefault((kind, partition), []).append(i)
        for (kind, partition), members in groups.items():
            owner = self._rows(kind)
            slots = owner.pool.add(partition, [names[i][2] for i in members])
            self.mark_clean(kind, slots)
            found = []
            for slot, i in zip(slots.tolist(), members, strict=True):
                owner.pool.key[slot] = keys[i]
                if rows[i] is not None:
                    found.append((slot, rows[i]))
            if found:
                owner.unpack(np.array([slot for slot, _ in found]), [cast(bytes, row) for _, row in found])

    def admit_new(self, batch: EventBatch | LabelBatch) -> None:
        """Makes empty rows for all that is missing: for use without a store."""
        names = self.missing(batch)
        self.admit(names, [b""] * len(names), [None] * len(names))

    def pack(self, kind: str, slots: Slots) -> list[bytes]:
        return self._rows(kind).pack(slots)

    def mark_clean(self, kind: str, slots: Slots) -> None:
        """The store holds these rows as they are now."""
        self._rows(kind).pool.dirty[slots] = False
        if kind == "account":
            self.accounts.unflushed_events[slots] = 0
            self.accounts.unflushed_labels[slots] = 0

    def drop(self, partition: int) -> None:
        """Forgets every row of a partition, unwritten changes too."""
        self._located = None
        for pool in self.pools():
            pool.drop(partition)

    def _rows(self, kind: str) -> AccountRows | EntityRows:
        return self.accounts if kind == "account" else self.entities[kind]

    def _locate(self, batch: EventBatch | LabelBatch) -> Located:
        """The slots of a batch; looked up once until rows come or go."""
        if self._located is None or self._located[0] is not batch:
            self._located = (batch, self._look_up(batch))
        return self._located[1]

    def _look_up(self, batch: EventBatch | LabelBatch) -> Located:
        accounts = np.full(len(batch), -1, dtype=np.int64)
        kinds = {kind: np.full(len(batch), -1, dtype=np.int64) for kind in self.entities}
        for partition in np.unique(batch.partition).tolist():
            chosen = np.flatnonzero(batch.partition == partition)
            places = chosen.tolist()
            accounts[chosen] = self.accounts.pool.find(partition, [batch.accounts[i] for i in places])
            for kind, slots in kinds.items():
                identities = batch.entities[kind]
                slots[chosen] = self.entities[kind].pool.find(partition, [identities[i] for i in places])
        return Located(accounts, kinds)

    # --- labels

    def fold_labels(self, batch: LabelBatch) -> labels.LabelOutcome:
        """Folds labels into the rows of their accounts and entities. Rows must be in memory."""
        located = self._locate(batch)
        if (located.accounts < 0).any():
            raise ValueError("fold_labels: rows are missing; load what `missing` names first")
        outcome = labels.fold_accounts(self.accounts, located.accounts, batch)
        for kind, found in located.entities.items():
            rows = self.entities[kind]
            included = batch.offset < rows.pool["labels_offset"][found]
            slots = np.where(outcome.duplicate | included, -1, found)
            fold_labels(rows, slots, batch, outcome.change, outcome.unexplained)
        return outcome

    # --- events

    def assemble(self, batch: EventBatch) -> Assembled:
        """Vectors of B events, and the events folded into the rows. Rows must be in memory.

        Events that a row already includes (a replay) change nothing there; their vectors are zeros.
        """
        located = self._locate(batch)
        slots = located.accounts
        if (slots < 0).any():
            raise ValueError("assemble: rows are missing; load what `missing` names first")
        duplicate, included = find_duplicates(self.accounts.pool, slots, batch.event_hash, batch.offset)
        result = self._empty_result(len(batch), duplicate)
        values = self._entity_values(batch, located, duplicate, result)
        event = EventView(batch, values.of())
        # A column at a time into contiguous memory, turned round once.
        steps = np.zeros((self._step.width, len(batch)))
        aggregates = np.zeros((self._aggregates.width, len(batch)), dtype=np.float32)
        self._step.of_events(event, steps)
        self._aggregates.of_events(event, aggregates)
        values.fold()
        codes = self._codes(batch, located)
        for index in _rounds(slots, ~duplicate & ~included):
            self._round(event, codes, index, slots[index], (steps, aggregates), result)
        aggregates[:, duplicate | included] = 0.0
        result.aggregates[:] = aggregates.T
        return result

    def _empty_result(self, events: int, duplicate: NDArray[np.bool_]) -> Assembled:
        length, width = self.domain.sequence_length, self._step.width
        return Assembled(
            steps=np.zeros((events, length, width), dtype=np.float32),
            lengths=np.ones(events, dtype=np.int64),
            aggregates=np.empty((events, self._aggregates.width), dtype=np.float32),
            duplicate=duplicate,
            late=np.zeros(events, dtype=np.bool_),
            saturated=np.zeros(events, dtype=np.bool_),
            shared=np.zeros(events, dtype=np.bool_),
            view_read_ms=np.full(events, _LATEST, dtype=np.int64),
        )

    def _entity_values(
        self, batch: EventBatch, located: Located, duplicate: NDArray[np.bool_], result: Assembled
    ) -> EntityValues:
        table, account_code = self.entity_table, self.accounts.pool.code[located.accounts]
        kinds = len(table.entities)
        known = table.stacked(located.entities)
        included = np.tile(batch.offset, kinds) < table["offset"][known] if kinds else known < 0
        values = EntityValues(
            table,
            np.where(np.tile(duplicate, kinds) | included, -1, known),
            batch.time_ms,
            batch.amount_minor,
            batch.offset,
            account_code,
            use_others=self.use_others,
        )
        shared = values.shared.reshape(kinds, len(batch))
        read_ms = np.where(shared, table["other_read_ms"][known].reshape(shared.shape), _LATEST)
        result.shared |= shared.any(axis=0)
        np.minimum(result.view_read_ms, read_ms.min(axis=0, initial=_LATEST), out=result.view_read_ms)
        return values

    def _codes(self, batch: EventBatch, located: Located) -> dict[str, NDArray[np.uint32]]:
        """By field whose codes the ring keeps: (B,), 0 where the value is missing."""
        codes = {}
        for field in self.accounts.same_fields:
            if field in located.entities:
                slots = located.entities[field]
                codes[field] = np.where(slots >= 0, self.entities[field].pool.code[slots], np.uint32(0))
            else:
                codes[field] = batch.categories[field].astype(np.uint32)
        return codes

    def _round(
        self,
        event: EventView,
        codes: dict[str, NDArray[np.uint32]],
        index: I64,
        slots: Slots,
        columns: tuple[NDArray[np.float64], NDArray[np.float32]],
        result: Assembled,
    ) -> None:
        """One event each of different accounts: vectors from the rows before, then the rows after.

        `columns`: of the steps (F, B) and of the aggregates (D, B).
        """
        steps, aggregates = columns
        pool = self.accounts.pool
        newest = pool["newest"][slots]
        time_ms = event.time_ms[index]
        idle = (newest > NEVER) & (time_ms - newest > self.accounts.horizon_ms)
        if idle.any():
            self.accounts.begin_anew(slots[idle])
        view = View(event, codes, self.accounts, index, slots)
        self._step.of_accounts(view, steps)
        self._aggregates.of_accounts(view, aggregates)
        result.late[index] = time_ms < newest
        result.saturated[index] = view.saturated
        self._fold_tiles(slots, pool["folded"][slots] % RING)
        self._fold_ring(event.batch, codes, view)
        self._fold_summary(event.batch, view)
        self._fold_step(steps[:, index].T, index, slots, result)
        pool["offset"][slots] = event.batch.offset[index] + 1
        pool.dirty[slots] = True
        self.accounts.unflushed_events[slots] += 1

    def _fold_tiles(self, slots: Slots, place: I64) -> None:
        """What is about to leave the ring goes into the tiles; it may be none."""
        pool = self.accounts.pool
        leaving_time = pool["ring_time"][slots, place]
        leaves = np.flatnonzero(leaving_time > NEVER)
        if not len(leaves):
            return
        rows, places = slots[leaves], place[leaves]
        pool["left"][rows] = np.maximum(pool["left"][rows], leaving_time[leaves])
        tile = leaving_time[leaves][:, None] // self._widths_ms  # (n, W)
        where = tile % TILES
        w = np.arange(len(self._widths_ms))
        at = (rows[:, None], w[None, :], where)
        stored = pool["tile_epoch"][at]
        field = self.accounts.tile_field
        bit = code_bits(pool[f"code_{field}"][rows, places]) if field else np.zeros(len(rows), dtype=np.uint64)
        amount = np.maximum(pool["ring_amount"][rows, places], 0)
        keep = stored > tile  # an older late event: its tile is gone
        same = stored == tile
        count = np.where(same, pool["tile_count"][at], 0) + 1
        total = np.where(same, pool["tile_sum"][at], 0) + amount[:, None]
        bits = np.where(same, pool["tile_bits"][at], np.uint64(0)) | bit[:, None]
        for name, value in (("tile_count", count), ("tile_sum", total), ("tile_bits", bits), ("tile_epoch", tile)):
            pool[name][at] = np.where(keep, pool[name][at], value)

    def _fold_ring(self, batch: EventBatch, codes: dict[str, NDArray[np.uint32]], view: View) -> None:
        pool, index, slots = self.accounts.pool, view.index, view.slots
        place = pool["folded"][slots] % RING
        late = np.flatnonzero(view.time_ms < view.row("newest"))
        for field in self.accounts.distinct_fields:
            newest, present = view.row(f"newest_{field}") & ~view.same(field), codes[field][index] != 0
            if len(late):  # what came before a late event may be newer than it
                same = view.same(field)[late] & (view.row("ring_time")[late] > NEVER)
                later = same & (view.row("ring_time")[late] > view.time_ms[late, None])
                newest[late] = view.row(f"newest_{field}")[late] & ~(same & ~later)
                present[late] &= ~later.any(axis=1)
            newest[np.arange(len(slots)), place] = present
            pool[f"newest_{field}"][slots] = newest
        for field in self.accounts.same_fields:
            pool[f"code_{field}"][slots, place] = codes[field][index]
        pool["ring_time"][slots, place] = view.time_ms
        pool["ring_amount"][slots, place] = view.amount_minor
        pool["ring_hash"][slots, place] = batch.event_hash[index]
        pool["ring_offset"][slots, place] = batch.offset[index]
        pool["ring_verdict"][slots, place] = NO_VERDICT
        pool["ring_norm"][slots, place] = self._fold_norm(view)

    def _fold_norm(self, view: View) -> I64:
        """Adds the amounts to the norms of their accounts; what each brought in, -1 without a rate."""
        pool, priced = self.accounts.pool, view.amount_minor >= 0
        scaled = np.where(priced, np.rint(LOG_SCALE * np.nan_to_num(view.log_amount)), 0)
        brought = clipped_to_norm(scaled, *(view.row(name) for name in NORM))
        for name, value in zip(NORM, (np.ones_like(brought), brought, brought * brought), strict=True):
            pool[name][view.slots] += np.where(priced, value, 0)
        return np.where(priced, brought, -1)

    def _fold_summary(self, batch: EventBatch, view: View) -> None:
        pool, time_ms, index, slots = self.accounts.pool, view.time_ms, view.index, view.slots
        first, hour = pool["first"][slots], time_ms // 3_600_000
        pool["first"][slots] = np.where(first > NEVER, np.minimum(first, time_ms), time_ms)
        pool["newest"][slots] = np.maximum(pool["newest"][slots], time_ms)
        pool["hours"][slots, hour % 24] += 1
        pool["weekend"][slots] += np.asarray(is_weekend(hour), dtype=np.uint32)
        latitude, longitude = batch.latitude[index], batch.longitude[index]
        placed = np.isfinite(latitude) & np.isfinite(longitude)
        rows = slots[placed]
        pool["place_time"][rows] = time_ms[placed]
        pool["place_latitude"][rows] = latitude[placed]
        pool["place_longitude"][rows] = longitude[placed]

    def _fold_step(self, step: NDArray[np.float64], index: I64, slots: Slots, result: Assembled) -> None:
        """Caches the step vector (float16) and gathers the account's last T, oldest first."""
        pool, length = self.accounts.pool, self.domain.sequence_length
        folded = pool["folded"][slots]
        pool["steps"][slots, folded % length] = np.clip(step, -_FLOAT16_LIMIT, _FLOAT16_LIMIT)
        folded += 1
        pool["folded"][slots] = folded
        lengths = np.minimum(folded - pool["since"][slots], length)
        position = np.arange(length)
        sequence = pool["steps"][slots[:, None], (folded[:, None] - lengths[:, None] + position) % length]
        short = np.flatnonzero(lengths < length)
        sequence[short] = np.where((position < lengths[short, None])[:, :, None], sequence[short], np.float16(0))
        result.steps[index] = sequence
        result.lengths[index] = lengths


def _kept(operators: Sequence[Operator], entity: str) -> set[str]:
    """What of entity_rows.OPTIONAL the operators of an entity read."""
    reading = [operator for operator in operators if getattr(operator, "entity", None) == entity]
    return {name for operator in reading for name in getattr(operator, "keeps", ())}


class Vector:
    """The columns of a vector: those of the event alone are computed once per batch, the others per round."""

    def __init__(self, declared: Sequence[Feature]) -> None:
        self._of_events: list[tuple[EventOperator, int]] = []
        self._of_accounts: list[tuple[AccountOperator, int]] = []
        self.width = 0
        for operator in declared:
            if getattr(operator, "of_event", False):
                self._of_events.append((cast(EventOperator, operator), self.width))
            else:
                self._of_accounts.append((cast(AccountOperator, operator), self.width))
            self.width += len(operator.columns)

    def of_events(self, view: EventView, out: NDArray[Any]) -> None:
        """Fills its rows of `out` (width, B)."""
        for operator, first in self._of_events:
            for column, values in enumerate(operator.compute(view), first):
                out[column] = values

    def of_accounts(self, view: View, out: NDArray[Any]) -> None:
        """Fills the places of the view's events in its rows of `out` (width, B)."""
        for operator, first in self._of_accounts:
            for column, values in enumerate(operator.compute(view), first):
                out[column][view.index] = values


def _rounds(slots: Slots, active: NDArray[np.bool_]) -> list[I64]:
    """Positions of the active events by rank within their account: first events, second events, ..."""
    chosen = np.flatnonzero(active)
    if not len(chosen):
        return []
    order = np.argsort(slots[chosen], kind="stable")
    ordered = slots[chosen][order]
    starts = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    position = np.arange(len(ordered))
    rank = position - np.maximum.accumulate(np.where(starts, position, 0))
    by_rank = np.argsort(rank, kind="stable")
    ends = np.cumsum(np.bincount(rank))[:-1]
    return [np.sort(part) for part in np.split(chosen[order][by_rank], ends)]


def check(domain: Domain) -> None:
    """Tries the domain's operators on one event. ConfigError names what one of them lacks."""
    for feature in domain.step:
        if hasattr(feature, "entity"):
            raise ConfigError(
                f"domain {domain.name!r}: {type(feature).__name__} {feature.columns[0].name!r} in `step`: step vectors "
                "know the account alone, so that they are the same however many partitions there are; "
                "declare it among the `aggregates`"
            )
    state = FeatureState(domain, accounts=1, entities=1)
    batch = EventBatch(
        events=[{}],
        partition=np.zeros(1, dtype=np.int32),
        offset=np.zeros(1, dtype=np.int64),
        time_ms=np.zeros(1, dtype=np.int64),
        amount_minor=np.zeros(1, dtype=np.int64),
        accounts=[""],
        event_hash=np.zeros(1, dtype=np.uint64),
        entities={entity.name: [None] for entity in domain.entities},
        categories={category.field: np.zeros(1, dtype=np.int16) for category in domain.categories},
        latitude=np.full(1, np.nan),
        longitude=np.full(1, np.nan),
        numbers={field: np.full(1, np.nan) for field in domain.numbers},
    )
    state.admit_new(batch)
    try:
        state.assemble(batch)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"domain {domain.name!r}: a feature names {error.args[0]!r}, which the domain does not declare among "
            f"its windows, entities, categories and numbers"
        ) from None
