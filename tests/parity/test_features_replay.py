"""A crash between any two row writes: the replay from the checkpoint gives the same rows bit for bit.

Every flush writes all account rows, then all entity rows, then the checkpoints. The stream of writes is
cut after each of them; a new worker starts from what is left, replays the log from the checkpoint to
where it was committed, goes on to the end, and must leave the rows that an undisturbed run leaves.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from stream.features.pool import RowPool
from stream.features.rows import row_offsets
from tests.parity import streams
from tests.parity.naive_history import Event, Label
from tests.parity.streams import DAY_MS, Item, Output, Shape

Name = tuple[str, int, str]
Order = Callable[[list[RowPool]], list[RowPool]]
FLUSH_EVERY = 30


@dataclass(frozen=True)
class Write:
    """One row, or (kind "W") the checkpoint of a partition; `position` in the log when it was written."""

    name: Name
    content: bytes | tuple[int, int]
    position: int


@dataclass
class Store:
    rows: dict[Name, bytes] = field(default_factory=dict)
    checkpoints: dict[int, tuple[int, int]] = field(default_factory=dict)
    writes: list[Write] = field(default_factory=list)

    def write(self, write: Write) -> None:
        """A row replaces another only if neither of its offsets is lower and one is greater."""
        self.writes.append(write)
        if isinstance(write.content, tuple):
            self.checkpoints[write.name[1]] = write.content
            return
        old, new = row_offsets(self.rows.get(write.name, bytes(16))), row_offsets(write.content)
        if all(n >= o for n, o in zip(new, old, strict=True)) and new != old:
            self.rows[write.name] = write.content

    def after(self, writes: Sequence[Write]) -> Store:
        """A copy of this store with these writes applied; its own history begins empty."""
        copy = Store(dict(self.rows), dict(self.checkpoints))
        for write in writes:
            copy.write(write)
        copy.writes = []
        return copy


def accounts_first(pools: list[RowPool]) -> list[RowPool]:
    return pools


class Worker:
    """Folds a log over a store, flushing now and then, as the engine does."""

    def __init__(self, store: Store, log: Sequence[Item], order: Order = accounts_first) -> None:
        self.store, self.log, self.order = store, log, order
        self.state = streams.state()
        self.done = {partition: list(offsets) for partition, offsets in store.checkpoints.items()}
        self.outputs: dict[tuple[int, int], Output] = {}

    def run(self, committed: int, seed: int, flush_every: int = FLUSH_EVERY, end: int | None = None) -> None:
        """Replays what the checkpoints do not cover of log[:committed], then goes on; flushes at the end."""
        places = [i for i in range(len(self.log) if end is None else end) if i >= committed or self.uncovered(i)]
        sizes = streams.varied(seed, 40)
        for start in range(0, len(places), flush_every):
            part = places[start : start + flush_every]
            for items in streams.cut([self.log[i] for i in part], sizes):
                self.fold(items)
            self.flush(max(part[-1] + 1, committed))

    def uncovered(self, place: int) -> bool:
        item = self.log[place]
        events, labels = self.done.get(item.partition, (0, 0))
        return item.offset >= (labels if isinstance(item, Label) else events)

    def fold(self, items: Sequence[Item]) -> None:
        self.state.next_turn()
        names = self.state.missing(streams.batch_of(self.state, items))
        self.state.admit(names, [b""] * len(names), [self.store.rows.get(name) for name in names])
        streams.fold(self.state, items, self.outputs)
        for item in items:
            self.done.setdefault(item.partition, [0, 0])[isinstance(item, Label)] = item.offset + 1

    def flush(self, position: int) -> None:
        dirty = [(pool, pool.dirty_slots(self.done)) for pool in self.order(self.state.pools())]
        for pool, slots in dirty:
            partitions = pool.partition_of(slots).tolist()
            rows = self.state.pack(pool.kind, slots)
            for slot, partition, row in zip(slots.tolist(), partitions, rows, strict=True):
                self.store.write(Write((pool.kind, partition, pool.identity[slot]), row, position))
        self.checkpoint(position)
        for pool, slots in dirty:
            self.state.mark_clean(pool.kind, slots)

    def checkpoint(self, position: int) -> None:
        for partition, (events, labels) in self.done.items():
            self.store.write(Write(("W", partition, ""), (events, labels), position))


@dataclass(frozen=True)
class Case:
    """A log, the store as it was flushed at `start`, and an undisturbed run from there."""

    log: list[Item]
    start: int
    base: Store
    undisturbed: Worker

    @property
    def writes(self) -> list[Write]:
        return self.undisturbed.store.writes

    def committed_after(self, writes: int) -> int:
        """Where the worker stood when it had made so many writes: no row may be ahead of it."""
        return max((w.position for w in self.writes[: writes + 1]), default=self.start)


def case(
    log: list[Item],
    start: int,
    order: Order = accounts_first,
    flush_every: int = FLUSH_EVERY,
    worker: type[Worker] = Worker,
) -> Case:
    first = Worker(Store(), log)
    first.run(0, seed=1, end=start)
    base = first.store.after([])
    undisturbed = worker(base.after([]), log, order)
    undisturbed.run(start, seed=2, flush_every=flush_every)
    return Case(log, start, base, undisturbed)


def differences(case: Case, restored: Worker, committed: int) -> list[str]:
    """What a restored worker left otherwise than the undisturbed one: rows, and outputs from C on."""
    mine, theirs = restored.store.rows, case.undisturbed.store.rows
    wrong = [f"row of {name[0]}" for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)]
    new = [(e.partition, e.offset) for e in case.log[committed:] if isinstance(e, Event)]
    outputs, expected = restored.outputs, case.undisturbed.outputs
    return wrong + ["output" for key in new if not streams.same_bits({0: outputs[key]}, {0: expected[key]})]


def crash_everywhere(case: Case) -> Iterator[int]:
    """How many differences each cut leads to."""
    for writes in range(len(case.writes) + 1):
        committed = case.committed_after(writes)
        restored = Worker(case.base.after(case.writes[:writes]), case.log)
        restored.run(committed, seed=writes)
        yield len(differences(case, restored, committed))


SHAPE = Shape(items=270, accounts=4, busy=0.6, labels=0.08, duplicates=0.12, partitions=2, pace_ms=20 * 60_000)


@pytest.fixture(scope="module", params=[3, 4])
def crashing(request: pytest.FixtureRequest) -> Case:
    return case(streams.random_log(request.param, SHAPE), start=200)


def test_a_cut_after_any_write_is_healed(crashing: Case) -> None:
    assert list(crash_everywhere(crashing)) == [0] * (len(crashing.writes) + 1)
    replayed = crashing.log[crashing.start :]
    assert sum(isinstance(item, Label) for item in replayed) > 3
    assert len(crashing.base.checkpoints) == 2
    assert sum(bool(output["duplicate"]) for output in crashing.undisturbed.outputs.values()) > 3
    accounts = [row for name, row in crashing.base.rows.items() if name[0] == "account"]
    assert any(row[16] & 8 for row in accounts), "no account with tiles"


def test_a_second_crash_during_the_replay_is_healed(crashing: Case) -> None:
    draw = random.Random(5)
    for _ in range(12):
        writes = draw.randrange(len(crashing.writes))
        committed = crashing.committed_after(writes)
        second = Worker(crashing.base.after(crashing.writes[:writes]), crashing.log)
        before = second.store.after([])
        second.run(committed, seed=writes, flush_every=draw.randint(5, 20), end=committed)
        cut = draw.randint(0, len(second.store.writes))
        third = Worker(before.after(second.store.writes[:cut]), crashing.log)
        third.run(committed, seed=writes + 1)
        assert differences(crashing, third, committed) == []


def test_more_was_committed_than_flushed(crashing: Case) -> None:
    draw = random.Random(6)
    for _ in range(8):
        writes = draw.randrange(len(crashing.writes))
        committed = draw.randint(crashing.committed_after(writes), len(crashing.log))
        restored = Worker(crashing.base.after(crashing.writes[:writes]), crashing.log)
        restored.run(committed, seed=writes)
        assert differences(crashing, restored, committed) == []


def test_entities_first_is_healed_too() -> None:
    """No row is made from another kind of row, so the order of kinds within a flush decides nothing."""

    def entities_first(pools: list[RowPool]) -> list[RowPool]:
        return [*pools[1:], pools[0]]

    assert not any(crash_everywhere(case(streams.random_log(3, SHAPE), start=200, order=entities_first)))


def test_a_checkpoint_before_its_rows_would_not_be_healed() -> None:
    class Hasty(Worker):
        def flush(self, position: int) -> None:
            self.checkpoint(position)
            super().flush(position)

    assert any(crash_everywhere(case(streams.random_log(3, SHAPE), start=200, worker=Hasty)))


def busy_log(events: int, labels: int) -> list[Item]:
    """One account: some events, then labels of the last ones."""
    writer = streams.Writer(7, Shape(items=0))
    past = [writer.append("a", streams.START_MS + i * DAY_MS // 400) for i in range(70 + events)]
    for event in past[-labels:] if labels else []:
        writer.verdict(streams.label_of(event, fraud=True))
    return writer.log


@pytest.mark.parametrize(("events", "labels", "healed"), [(64, 0, True), (65, 0, False), (1, 16, True), (1, 17, False)])
def test_the_bounds_between_two_flushes(events: int, labels: int, healed: bool) -> None:
    """64 events and 16 labels of an account: of more, a replay could not tell which were duplicates."""
    found = case(busy_log(events, labels), start=70, flush_every=1_000)
    assert any(crash_everywhere(found)) != healed


def test_a_replay_changes_nothing_in_rows_that_are_ahead(crashing: Case) -> None:
    """All rows written, W not: the replay from the old W folds nothing and marks nothing as changed."""
    end = crashing.undisturbed
    ahead = Store(dict(end.store.rows), dict(crashing.base.checkpoints))
    again = Worker(ahead, crashing.log)
    again.run(len(crashing.log), seed=9, flush_every=1_000)
    assert {write.name[0] for write in again.store.writes} == {"W"}
    duplicates = {key: output["duplicate"] for key, output in again.outputs.items()}
    assert duplicates == {key: end.outputs[key]["duplicate"] for key in duplicates}


def test_an_event_below_the_offset_of_a_row_is_skipped() -> None:
    log = [item for item in streams.random_log(9, Shape(items=60, accounts=2)) if isinstance(item, Event)]
    state = streams.state()
    streams.run(state, log, streams.fixed(9))
    rows = streams.packed(state)
    streams.run(state, [replace(item, time_ms=item.time_ms + 5) for item in log], streams.fixed(4))
    assert streams.packed(state) == rows
