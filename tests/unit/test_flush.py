"""Rows between memory and the store: what is written when, and what is left after a flush that was cut short."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from stream.config import BatchSettings
from stream.engine import flush
from stream.engine.flush import ACCOUNT_EVENTS_PER_TURN, ACCOUNT_LABELS_PER_TURN, RowKeeper
from stream.engine.partition import Partition, Phase
from stream.engine.pipeline import Pipeline
from stream.errors import NotAuthorisedError, StateLostError, UnavailableError
from stream.features.assemble import FeatureState
from stream.features.batch import EventBatch, LabelBatch
from stream.features.money import Rates
from stream.features.pool import ArenaFullError
from stream.features.rows import LABEL_RING, RING, row_offsets
from stream.kafka.memory import MemoryRecord
from stream.metrics import Metrics
from stream.scoring.lineup import Lineup
from stream.state.memory import MemoryServer, MemoryStore
from stream.state.store import Checkpoint, EntityName, Head
from tests.crash.small import DOMAIN
from tests.crash.traffic import Item, Traffic


class Cut(Exception):
    """The flush ends here."""


class WatchedStore(MemoryStore):
    """Notes every call, and fails at the n-th of a kind."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__("flush", DOMAIN.spec_id, server)
        self.calls: list[tuple[str, object]] = []
        self.fails_at: dict[str, int] = {}

    def _note(self, kind: str, what: object) -> None:
        self.calls.append((kind, what))
        if sum(k == kind for k, _ in self.calls) == self.fails_at.get(kind):
            raise UnavailableError("the store is away")

    def load_rows(self, keys: Sequence[bytes], heads: Mapping[int, Head]) -> list[bytes | None]:
        self._note("load", (list(keys), dict(heads)))
        return super().load_rows(keys, heads)

    def write_rows(self, rows: Mapping[bytes, bytes], heads: Mapping[int, Head]) -> int:
        self._note("rows", {key.split(b":")[4].decode() for key in rows})
        return super().write_rows(rows, heads)

    def publish_copies(self, copies: Mapping[int, Mapping[EntityName, bytes]], heads: Mapping[int, Head]) -> None:
        self._note("copies", {(kind, partition) for partition, rows in copies.items() for kind, _ in rows})
        super().publish_copies(copies, heads)

    def read_copies(self, entities: Sequence[EntityName], own: Sequence[int]) -> list[dict[int, bytes]]:
        self._note("read", set(entities))
        return super().read_copies(entities, own)

    def write_checkpoints(self, checkpoints: Mapping[int, Checkpoint], heads: Mapping[int, Head]) -> dict[int, Head]:
        self._note("W", set(checkpoints))
        return super().write_checkpoints(checkpoints, heads)

    def load_checkpoint(self, partition: int) -> Checkpoint | None:
        head = self.load_head(partition)
        return head.checkpoint if head is not None else None

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.calls]


@dataclass
class Bench:
    """A keeper over a store, with partitions that stand at what was folded."""

    server: MemoryServer = field(default_factory=MemoryServer)
    accounts: int = 64
    share: bool = False
    fault: Callable[[str], None] = flush.no_fault

    def __post_init__(self) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.state = FeatureState(DOMAIN, accounts=self.accounts, entities=64, use_others=self.share)
        self.store = WatchedStore(self.server)
        self.keeper = RowKeeper(self.state, self.store, self.metrics, share_entities=self.share, fault=self.fault)
        rates = Rates.base_only("USD")
        self.pipeline = Pipeline(DOMAIN, rates, BatchSettings(), self.state, Lineup(), self.metrics)
        heads = {n: self.store.claim(n, "flush-w0", 1_000) for n in (0, 1)}
        self.partitions = {
            n: Partition(n, Phase.RUNNING, head.checkpoint or Checkpoint(0, 0), head) for n, head in heads.items()
        }

    def decoded(self, items: Iterable[Item], partition: int = 0) -> EventBatch | LabelBatch:
        """A batch of events or of labels at the partition's next offsets."""
        items, done = list(items), self.partitions[partition].done
        is_label = items[0].topic == "labels"
        start = done.labels if is_label else done.transactions
        records = [
            MemoryRecord(item.topic, partition, start + i, 1_800_000_000_000, item.key, item.value, item.headers)
            for i, item in enumerate(items)
        ]
        decode = self.pipeline.decode_labels if is_label else self.pipeline.decode_events
        return decode(records).batch

    def load(self, batch: EventBatch | LabelBatch, without: Sequence[int] = ()) -> None:
        self.pipeline.next_turn()
        self.keeper.load(batch, {p.number: p.head for p in self.partitions.values()}, without=without)

    def fold(self, items: Iterable[Item], partition: int = 0) -> None:
        batch = self.decoded(items, partition)
        self.load(batch)
        done, end = self.partitions[partition].done, int(batch.offset[-1]) + 1
        if isinstance(batch, LabelBatch):
            self.state.fold_labels(batch)
            self.partitions[partition].done = Checkpoint(done.transactions, end)
        else:
            self.state.assemble(batch)
            self.partitions[partition].done = Checkpoint(end, done.labels)

    def flush(self, *numbers: int) -> int:
        return self.keeper.flush([self.partitions[n] for n in numbers or (0, 1)])

    def dirty(self) -> int:
        return sum(int(pool.dirty.sum()) for pool in self.state.pools())

    def packed(self) -> dict[bytes, bytes]:
        rows = {}
        for pool in self.state.pools():
            for number in (0, 1):
                slots = pool.slots_of(number)
                keys = [self.store.row_key(number, pool.kind, pool.identity[slot]) for slot in slots.tolist()]
                rows |= dict(zip(keys, self.state.pack(pool.kind, slots), strict=True))
        return rows

    def count(self, operation: str) -> int:
        return int(self.metrics.redis_rows.labels(operation)._value.get())


@pytest.fixture
def traffic() -> Traffic:
    return Traffic(1, 1)


def events(traffic: Traffic, count: int, account: str = "a", **given: object) -> list[Item]:
    return [traffic.event(account, **given) for _ in range(count)]


def labels(traffic: Traffic, count: int, account: str = "a") -> list[Item]:
    return [traffic.label(event, fraud=True) for event in traffic.past[account][-count:]]


# --- loading


def test_what_one_wrote_another_loads(traffic: Traffic) -> None:
    bench = Bench()
    bench.fold(events(traffic, 70))
    bench.fold(events(traffic, 3, "b"), partition=1)
    bench.fold(labels(traffic, 4))
    written = bench.packed()
    assert bench.flush() == len(written)
    assert bench.server.rows == written
    again = Bench(bench.server)
    again.load(again.decoded(events(traffic, 1, "a", merchant_id="m0-0", device_id=None)))
    account, merchant = again.store.row_key(0, "account", "a"), again.store.row_key(0, "merchant", "m0-0")
    assert again.packed() == {account: written[account], merchant: written[merchant]}
    assert row_offsets(written[account]) == (70, 4)


def test_one_round_trip_for_all_that_is_missing_and_none_for_the_rest(traffic: Traffic) -> None:
    bench = Bench()
    items = [*events(traffic, 5), *events(traffic, 5, "b")]
    bench.fold(items)
    assert bench.store.kinds == ["load"]
    bench.fold(events(traffic, 2, merchant_id=traffic.past["a"][0]["merchant_id"], device_id=None))
    assert bench.store.kinds == ["load"]
    assert bench.count("absent") > 2
    assert bench.count("loaded") == 0


def test_loading_from_a_store_that_lost_its_checkpoint_is_refused(traffic: Traffic) -> None:
    bench = Bench()
    bench.fold(events(traffic, 2))
    bench.flush()
    bench.server.flush_all()
    with pytest.raises(StateLostError):
        bench.fold(events(traffic, 1, "another"))


def test_a_store_that_is_away_changes_nothing(traffic: Traffic) -> None:
    bench = Bench()
    bench.fold(events(traffic, 2))
    before = bench.packed()
    bench.server.available = False
    with pytest.raises(UnavailableError):
        bench.fold(events(traffic, 1, "another"))
    assert bench.packed() == before
    assert not bench.keeper.store_answers(0)
    bench.server.available = True
    assert bench.keeper.store_answers(0)


def test_degraded_partitions_are_not_asked_for(traffic: Traffic) -> None:
    bench = Bench()
    bench.server.available = False
    batch = bench.decoded(events(traffic, 3))
    bench.load(batch, without=(0,))
    assert bench.store.calls == []
    assert bench.state.missing(batch) == []


def test_rows_that_left_memory_come_back_as_they_were(traffic: Traffic) -> None:
    """More accounts than fit: clean rows make room, dirty ones don't."""
    bench = Bench(accounts=4)
    plain = {"device_id": None, "merchant_id": "m"}
    bench.fold([item for name in "abcd" for item in events(traffic, 1, name, **plain)])
    with pytest.raises(ArenaFullError):
        bench.fold(events(traffic, 1, "e", **plain))
    before = bench.packed()
    bench.flush()
    bench.fold(events(traffic, 2, "e", **plain))
    assert len(bench.state.accounts.pool) <= 4
    bench.flush()
    for name in "abcd":
        bench.load(bench.decoded(events(traffic, 1, name, **plain)))
        key = bench.store.row_key(0, "account", name)
        assert bench.packed()[key] == before[key]


# --- flushing


def test_accounts_first_then_entities_then_the_checkpoints(traffic: Traffic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flush, "_WRITE_ROWS", 2)
    bench = Bench(share=True)
    for name in "abc":
        bench.fold(events(traffic, 2, name, device_id=f"d-{name}"))
    bench.fold(events(traffic, 2, "z", device_id="d-z"), partition=1)
    bench.store.calls.clear()
    bench.flush()
    kinds = bench.store.kinds
    assert "load" not in kinds, "every write asks by itself whether the head is still ours"
    assert kinds[-1:] == ["W"]
    assert "W" not in kinds[:-1]
    written = [what for kind, what in bench.store.calls if kind == "rows"]
    accounts = written.count({"account"})
    assert written[:accounts] == [{"account"}] * 2
    assert all(isinstance(what, set) and what <= {"merchant", "device"} for what in written[accounts:])
    assert kinds[accounts:-1] == ["rows", "copies"] * (len(written) - accounts), "copies are never ahead of rows"
    copied = [what for call, what in bench.store.calls if call == "copies" and isinstance(what, set)]
    assert set.union(*copied) == {("merchant", 0), ("merchant", 1), ("device", 0), ("device", 1)}


def test_only_the_partitions_asked_for(traffic: Traffic) -> None:
    bench = Bench()
    bench.fold(events(traffic, 2))
    bench.fold(events(traffic, 2, "z"), partition=1)
    bench.flush(1)
    assert {key.split(b"}")[0].rsplit(b":", 1)[1] for key in bench.server.rows} == {b"1"}
    assert bench.partitions[0].checkpoint is None
    assert bench.partitions[1].checkpoint == (2, 0)
    assert bench.dirty() > 0
    bench.flush()
    assert bench.dirty() == 0


def test_nothing_new_is_no_call_at_all(traffic: Traffic) -> None:
    bench = Bench()
    bench.fold(events(traffic, 2))
    bench.flush()
    bench.store.calls.clear()
    assert bench.flush() == 0
    assert bench.store.calls == []


def test_a_checkpoint_moves_though_no_row_changed(traffic: Traffic) -> None:
    """Duplicates and dead letters alone: the offsets move on, the rows do not."""
    bench = Bench()
    bench.fold(events(traffic, 2))
    bench.flush()
    bench.partitions[0].done = Checkpoint(9, 0)
    assert bench.flush() == 0
    assert bench.store.load_checkpoint(0) == (9, 0)


@pytest.mark.parametrize("point", ["flush:after_chunk", "flush:after_accounts", "flush:after_entities"])
def test_cut_short_all_remains_to_be_written(traffic: Traffic, point: str) -> None:
    armed = [True]

    def cut(at: str) -> None:
        if armed[0] and at == point:
            raise Cut

    bench = Bench(fault=cut)
    bench.fold(events(traffic, 6))
    bench.fold(labels(traffic, 2))
    dirty = bench.dirty()
    with pytest.raises(Cut):
        bench.flush()
    assert bench.dirty() == dirty
    assert bench.store.load_checkpoint(0) is None
    assert bench.partitions[0].checkpoint is None
    assert len(bench.server.rows) > 0
    bench.fold(events(traffic, 3))
    armed[0] = False
    bench.flush()
    assert bench.server.rows == bench.packed()
    assert bench.store.load_checkpoint(0) == (9, 2)


@pytest.mark.parametrize(("call", "number"), [("rows", 1), ("rows", 2), ("copies", 1), ("W", 1)])
def test_a_store_that_fails_in_between_is_asked_again(traffic: Traffic, call: str, number: int) -> None:
    bench = Bench(share=True)
    bench.fold([*events(traffic, 6), *events(traffic, 2, "b")])
    bench.partitions[1].done = Checkpoint(3, 0)
    bench.store.fails_at[call] = number
    with pytest.raises(UnavailableError):
        bench.flush()
    bench.store.fails_at.clear()
    bench.flush()
    assert bench.dirty() == 0
    assert bench.server.rows == bench.packed()
    assert [bench.store.load_checkpoint(n) for n in (0, 1)] == [(8, 0), (3, 0)]


def test_a_store_with_another_checkpoint_gets_no_row(traffic: Traffic) -> None:
    """It came back older, or somebody else restored the partition: rows of ours would be ahead of its W."""
    bench = Bench()
    bench.fold(events(traffic, 2, merchant_id="m", device_id=None))
    bench.flush()
    before = bench.server.snapshot()
    older = {name: head.written(Checkpoint(1, 0)) for name, head in bench.server.heads.items()}
    bench.server.heads.update(older)
    bench.fold(events(traffic, 2, merchant_id="m", device_id=None))
    with pytest.raises(StateLostError):
        bench.flush()
    assert bench.server.rows == before.rows


@pytest.mark.parametrize("point", ["flush:after_chunk", "flush:after_accounts", "flush:after_entities"])
def test_a_zombie_writes_nothing_once_another_one_has_claimed(
    traffic: Traffic, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """It stands still in the middle of its flush; the successor has only claimed, and written nothing yet."""
    monkeypatch.setattr(flush, "_WRITE_ROWS", 2)
    claimed: list[MemoryServer] = []

    def stand_still(at: str) -> None:
        if at == point and not claimed:
            Bench(zombie.server)
            claimed.append(zombie.server.snapshot())

    zombie = Bench(fault=stand_still, share=True)
    zombie.fold([item for name in "abcd" for item in events(traffic, 2, name)])
    with pytest.raises(StateLostError):
        zombie.flush()
    (before,) = claimed
    assert len(before.rows) > 0
    assert (zombie.server.rows, zombie.server.copies, zombie.server.heads) == (before.rows, before.copies, before.heads)


# --- the bound between two flushes


def test_the_bounds_add_up() -> None:
    """What may wait, plus one turn, is what a replay can tell apart."""
    assert 2 * ACCOUNT_EVENTS_PER_TURN == RING
    assert 2 * ACCOUNT_LABELS_PER_TURN == LABEL_RING


@pytest.mark.parametrize(("count", "must"), [(32, False), (33, True)])
def test_an_account_with_many_events_must_be_flushed(traffic: Traffic, count: int, must: bool) -> None:
    bench = Bench()
    bench.fold(events(traffic, count))
    assert bench.keeper.must_flush([0, 1]) is must
    bench.flush()
    assert not bench.keeper.must_flush([0, 1])


@pytest.mark.parametrize(("count", "must"), [(8, False), (9, True)])
def test_likewise_with_labels(traffic: Traffic, count: int, must: bool) -> None:
    bench = Bench()
    bench.fold(events(traffic, 20))
    bench.flush()
    bench.fold(labels(traffic, count))
    assert bench.keeper.must_flush([0, 1]) is must


def test_duplicates_do_not_count(traffic: Traffic) -> None:
    bench = Bench()
    items = events(traffic, 30)
    bench.fold(items)
    bench.fold(items)
    assert not bench.keeper.must_flush([0])


def test_rows_that_are_gone_or_not_asked_for_do_not_count(traffic: Traffic) -> None:
    """A dropped partition, or one whose rows are never to be flushed, would hold up all others for ever."""
    bench = Bench()
    bench.fold(events(traffic, 40))
    assert not bench.keeper.must_flush([1])
    bench.keeper.drop(0)
    assert not bench.keeper.must_flush([0, 1])


# --- the other partitions' values


def test_others_are_read_when_they_are_old(traffic: Traffic) -> None:
    bench = Bench(share=True)
    shared = {"merchant_id": "m", "device_id": None}
    bench.fold(events(traffic, 3, "a", **shared), partition=0)
    bench.fold(events(traffic, 4, "z", **shared), partition=1)
    bench.flush()
    batch = bench.decoded(events(traffic, 1, "a", **shared), 0)
    assert isinstance(batch, EventBatch)
    bench.load(batch)
    for now_ms, reads in ((10_000, 1), (10_999, 1), (11_000, 2)):
        bench.keeper.refresh_others(batch, now_ms, 1_000)
        assert bench.store.kinds.count("read") == reads
    pool = bench.state.entities["merchant"].pool
    (slot,) = pool.find(0, ["m"]).tolist()
    assert int(pool["other_day_count"][slot].sum()) == 4
    assert int(pool["day_count"][slot].sum()) == 3


def test_nothing_is_shared_where_it_is_switched_off(traffic: Traffic) -> None:
    bench = Bench()
    bench.fold(events(traffic, 3))
    bench.flush()
    batch = bench.decoded(events(traffic, 1))
    assert isinstance(batch, EventBatch)
    bench.keeper.refresh_others(batch, 10_000, 1)
    assert bench.server.copies == {}
    assert "read" not in bench.store.kinds


def test_the_gauges_show_the_memory(traffic: Traffic) -> None:
    bench = Bench(accounts=4)
    plain = {"device_id": None, "merchant_id": "m"}
    for name in "abcdef":
        bench.fold(events(traffic, 1, name, **plain))
        bench.flush()
    bench.keeper.measure()
    bench.keeper.measure()
    gauges = bench.metrics
    assert gauges.arena_capacity.labels("account")._value.get() == 4
    assert gauges.arena_rows.labels("account")._value.get() == len(bench.state.accounts.pool) <= 4
    assert gauges.arena_evictions.labels("account")._value.get() == bench.state.accounts.pool.evictions > 0
    assert gauges.arena_misses.labels("account")._value.get() == 6
    assert np.isclose(bench.count("written"), 6 + 6)


def test_the_store_is_asked_for_its_memory_now_and_then(traffic: Traffic) -> None:
    bench = Bench()
    bench.fold(events(traffic, 3, "a"))
    bench.flush()
    bench.keeper.measure_store(100.0)
    used = bench.metrics.redis_memory._value.get()
    assert 0 < used < bench.metrics.redis_memory_limit._value.get()
    bench.fold(events(traffic, 3, "b"))
    bench.flush()
    bench.server.available = False
    bench.keeper.measure_store(109.0)
    bench.keeper.measure_store(110.0)
    bench.server.available = True
    bench.keeper.measure_store(119.0)
    assert bench.metrics.redis_memory._value.get() == used, "a store that is away is asked again 10 s later"
    bench.keeper.measure_store(120.0)
    assert bench.metrics.redis_memory._value.get() > used


def test_a_store_that_refuses_the_question_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, asked = Bench(), []

    def refuse() -> None:
        asked.append(1)
        raise NotAuthorisedError("INFO is not for this user")

    monkeypatch.setattr(bench.store, "memory", refuse)
    for now_s in (0.0, 100.0, 1e9):
        bench.keeper.measure_store(now_s)
    assert len(asked) == 1
    assert bench.metrics.redis_memory._value.get() == 0
