"""The features against their slow twin, and the same log cut into different batches."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream.features import operators
from stream.features.assemble import FeatureState
from stream.features.pool import ArenaFullError
from tests.parity import streams
from tests.parity.naive_features import NaiveFeatures
from tests.parity.naive_history import Bounds, Event, Outcome, Shared, Value
from tests.parity.naive_operators import TWINS
from tests.parity.streams import DAY_MS, DOMAIN, HOUR_MS, START_MS, Item, Output, Shape

LARGEST_STEP = 60_000.0


def wrong_columns(fast: np.ndarray, slow: Sequence[Value], names: Sequence[str], precision: type) -> list[str]:
    """Columns that differ by more than one unit in the last place of `precision`, with both values."""
    ends = [(v.low, v.high) if isinstance(v, Bounds) else (v, v) for v in slow]
    low, high = np.array(ends, np.float64).T
    if precision is np.float16:
        low, high = np.clip(low, -LARGEST_STEP, LARGEST_STEP), np.clip(high, -LARGEST_STEP, LARGEST_STEP)
    least = np.nextafter(low.astype(precision), precision(-np.inf)) - 1e-6
    most = np.nextafter(high.astype(precision), precision(np.inf)) + 1e-6
    right = np.where(np.isnan(low), np.isnan(fast), (fast >= least) & (fast <= most))
    return [f"{names[i]}: {fast[i]}, not {slow[i]}" for i in np.flatnonzero(~right).tolist()]


def check(fast: Output, slow: Outcome, shared: bool = False) -> None:
    assert fast["duplicate"] == slow.duplicate
    if slow.duplicate:
        return
    assert (fast["late"], fast["saturated"], fast["shared"]) == (slow.late, slow.saturated, shared)
    names = [column.name for column in DOMAIN.aggregate_columns]
    assert not wrong_columns(fast["aggregates"], slow.aggregates, names, np.float32)
    assert fast["lengths"] == len(slow.steps)
    names = [column.name for column in DOMAIN.step_columns]
    for step, expected in zip(fast["steps"], slow.steps, strict=False):
        assert not wrong_columns(step, expected, names, np.float16)
    assert not fast["steps"][len(slow.steps) :].any()


def compare(log: Sequence[Item], sizes: streams.Iterator[int]) -> list[Outcome]:
    """Runs both over the log; every event must agree. Returns what the twin made."""
    fast = streams.run(streams.state(), log, sizes)
    twin, outcomes = NaiveFeatures(DOMAIN, TWINS), []
    for item in log:
        if isinstance(item, Event):
            outcomes.append(twin.event(item))
            check(fast[item.partition, item.offset], outcomes[-1])
        else:
            twin.label(item)
    return outcomes


def test_every_operator_has_a_twin_and_is_used() -> None:
    declared = {
        cls
        for _, cls in inspect.getmembers(operators, inspect.isclass)
        if hasattr(cls, "compute") and not getattr(cls, "_is_protocol", False)
    }
    assert declared == set(TWINS)
    assert declared == {type(operator) for operator in (*DOMAIN.step, *DOMAIN.aggregates)}


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_twin(seed: int) -> None:
    outcomes = compare(streams.random_log(seed, Shape(items=500)), streams.varied(seed))
    assert sum(o.late for o in outcomes) > 10
    assert sum(o.duplicate for o in outcomes) > 10


@pytest.mark.parametrize("seed", range(2))
def test_equals_the_twin_over_two_partitions(seed: int) -> None:
    compare(streams.random_log(seed, Shape(items=300, partitions=2)), streams.varied(seed))


@pytest.mark.parametrize(
    ("seed", "pace_ms", "late"), [(1, 20_000, 0.0), (2, 3 * HOUR_MS, 0.0), (3, 6 * HOUR_MS, 0.08), (4, 180_000, 0.1)]
)
def test_beyond_64_events_within_one_tile(seed: int, pace_ms: int, late: float) -> None:
    shape = Shape(items=380, accounts=2, busy=0.7, pace_ms=pace_ms, merchants=40, late=late, labels=0.05, idle=0.001)
    outcomes = compare(streams.random_log(seed, shape), streams.varied(seed))
    assert sum(o.saturated for o in outcomes) > 50
    assert any(isinstance(value, Bounds) and value.low < value.high for o in outcomes for value in o.aggregates)


EDGES_MS = (0, 1, 37_499, 37_500, 599_999, 600_000, HOUR_MS - 1, HOUR_MS, DAY_MS - 1, DAY_MS, 7 * DAY_MS, 30 * DAY_MS)
MOVES = st.one_of(
    st.tuples(
        st.just("event"),
        st.sampled_from([*EDGES_MS, 30 * DAY_MS + 1, -1, -HOUR_MS, -DAY_MS]),  # negative: a late event
        st.sampled_from("ab"),
        st.sampled_from([None, "x", "y"]),
        st.sampled_from([-1, 0, 1, 250_00, 10**14]),
    ),
    st.tuples(st.just("duplicate"), st.integers(1, 4)),
    st.tuples(st.just("label"), st.integers(1, 4), st.booleans()),
)


def log_of(moves: list[tuple[Any, ...]]) -> list[Item]:
    writer = streams.Writer(0, Shape(items=0))
    events: list[Event] = []
    for move in moves:
        if move[0] == "event":
            _, gap_ms, account, entity, amount_minor = move
            shared = {"merchant": entity or "m", "terminal": entity, "device": None, "ip": entity}
            time_ms = writer.now_ms + gap_ms
            writer.now_ms = max(writer.now_ms, time_ms)
            events.append(writer.append(account, time_ms, amount_minor=amount_minor, entities=shared))
        elif move[1] <= len(events) and move[0] == "duplicate":
            again = events[-move[1]]
            writer.log.append(streams.replace(again, offset=writer.offset("transactions", again.partition)))
        elif move[1] <= len(events):
            writer.verdict(streams.label_of(events[-move[1]], fraud=move[2]))
    return writer.log


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(MOVES, min_size=1, max_size=14), st.sampled_from([1, 3, 100]))
def test_equals_the_twin_at_the_edges(moves: list[tuple[Any, ...]], size: int) -> None:
    compare(log_of(moves), streams.fixed(size))


def test_what_a_label_did_equals_the_twin() -> None:
    log = streams.random_log(4, Shape(items=250, labels=0.5))
    state, twin, seen = streams.state(), NaiveFeatures(DOMAIN, TWINS), []
    for items in streams.cut(log, streams.varied(2, 20)):
        streams.admit_new(state, items)
        if isinstance(items[0], Event):
            streams.fold(state, items, {})
            for item in items:
                twin.event(item)
            continue
        outcome = state.fold_labels(streams.label_batch(items))
        expected = [twin.label(item) for item in items]
        assert outcome.duplicate.tolist() == [change is None for change in expected]
        assert outcome.change.tolist() == [change or 0 for change in expected]
        assert not outcome.included.any()
        seen += expected
    assert {seen.count(change) > 2 for change in (1, -1, 0, None)} == {True}


def test_the_comparison_can_fail() -> None:
    log = streams.random_log(5, Shape(items=40, accounts=2))
    fast = streams.run(streams.state(), log, streams.fixed(7))
    twin, failed = NaiveFeatures(DOMAIN, TWINS), 0
    for item in log:
        if isinstance(item, Event):
            moved = streams.replace(item, time_ms=item.time_ms - HOUR_MS)
            try:
                check(fast[item.partition, item.offset], twin.event(moved))
            except AssertionError:
                failed += 1
    assert failed > 20


# --- no trace of the batches


def by_partition(log: Sequence[Item]) -> list[Item]:
    return sorted(log, key=lambda item: item.partition)


def by_topic_run(log: Sequence[Item]) -> list[Item]:
    """Within each stretch without labels (or of labels alone), partition after partition."""
    runs = itertools.groupby(log, key=type)
    return [item for _, run in runs for item in by_partition(list(run))]


CUTS: dict[str, Callable[[], streams.Iterator[int]]] = {
    "one by one": lambda: streams.fixed(1),
    "sevens": lambda: streams.fixed(7),
    "64": lambda: streams.fixed(64),
    "500": lambda: streams.fixed(500),
    "random": lambda: streams.varied(11, 200),
}


@pytest.fixture(scope="module")
def long_log() -> list[Item]:
    return streams.random_log(21, Shape(items=700, accounts=9, partitions=3, busy=0.35, labels=0.03, merchants=20))


@pytest.fixture(scope="module")
def reference(long_log: list[Item]) -> tuple[dict[Any, Output], dict[Any, bytes]]:
    state = streams.state()
    return streams.run(state, long_log, streams.varied(1)), streams.packed(state)


@pytest.mark.parametrize("name", CUTS)
def test_batches_leave_no_trace(name: str, long_log: list[Item], reference: Any) -> None:
    state = streams.state()
    outputs = streams.run(state, long_log, CUTS[name]())
    assert streams.same_bits(outputs, reference[0])
    assert streams.packed(state) == reference[1]
    assert any(output["saturated"] for output in outputs.values())


@pytest.mark.parametrize("order", [by_partition, by_topic_run])
def test_partitions_apart_or_together(
    order: Callable[[Sequence[Item]], list[Item]], long_log: list[Item], reference: Any
) -> None:
    state = streams.state()
    outputs = streams.run(state, order(long_log), streams.varied(5, 100))
    assert streams.same_bits(outputs, reference[0])
    assert streams.packed(state) == reference[1]


class Shelf:
    """A dict as page store: rows go there when the arena is full and come back when needed."""

    def __init__(self, state: FeatureState) -> None:
        self.state, self.rows = state, dict[Any, bytes]()
        self.reloads = 0

    def flush(self) -> None:
        for pool in self.state.pools():
            slots = pool.dirty_slots(range(8))
            for slot, row in zip(slots.tolist(), self.state.pack(pool.kind, slots), strict=True):
                self.rows[pool.kind, int(pool.partition_of(np.array([slot]))[0]), pool.identity[slot]] = row
            self.state.mark_clean(pool.kind, slots)

    def load(self, items: Sequence[Item]) -> None:
        batch = streams.batch_of(self.state, items)
        while names := self.state.missing(batch):
            self.reloads += sum(name in self.rows for name in names)
            try:
                self.state.admit(names, [b"key"] * len(names), [self.rows.get(name) for name in names])
            except ArenaFullError:
                self.flush()

    def run(self, log: Sequence[Item], sizes: streams.Iterator[int]) -> dict[Any, Output]:
        outputs: dict[Any, Output] = {}
        for items in streams.cut(log, sizes):
            self.state.next_turn()
            self.load(items)
            streams.fold(self.state, items, outputs)
        self.flush()
        return outputs


def test_an_arena_smaller_than_its_accounts(reference: Any, long_log: list[Item]) -> None:
    shelf = Shelf(streams.state(accounts=4, entities=6))
    outputs = shelf.run(long_log, streams.varied(3, 4))
    assert shelf.reloads > 300
    assert streams.same_bits(outputs, reference[0])
    assert shelf.rows == reference[1]


# --- other partitions' entity values


def show_others(state: FeatureState, twin: NaiveFeatures, partitions: int) -> None:
    """Every partition reads the other partitions' partials as they are now."""
    rows = streams.packed(state)
    for kind, entity_rows in state.entities.items():
        for partition in range(partitions):
            slots = entity_rows.pool.slots_of(partition)
            names = [entity_rows.pool.identity[slot] for slot in slots.tolist()]
            others = [p for p in range(partitions) if p != partition]
            partials = [{p: rows[kind, p, n] for p in others if (kind, p, n) in rows} for n in names]
            entity_rows.set_others(slots, partials, now_ms=1)
            for name in names:
                twin.others[kind, partition, name] = [
                    Shared(list(partial.events), list(partial.changes), partial.last_fraud)
                    for p in range(partitions)
                    if p != partition and (partial := twin.shared.get((kind, p, name)))
                ]


@pytest.mark.parametrize("size", [1, 9, 400])
def test_other_partitions_values_take_part_in_aggregates_alone(size: int) -> None:
    shape = Shape(items=260, partitions=3, merchants=3, pace_ms=30_000, late=0, idle=0, labels=0.25)
    log = streams.random_log(8, shape)
    before, after = log[:180], log[180:]
    state, twin = streams.state(), NaiveFeatures(DOMAIN, TWINS)
    streams.run(state, before, streams.varied(1))
    for item in before:
        _ = twin.event(item) if isinstance(item, Event) else twin.label(item)
    show_others(state, twin, 3)
    fast = streams.run(state, after, streams.fixed(size))
    took_part = 0
    for item in after:
        if isinstance(item, Event):
            output, outcome = fast[item.partition, item.offset], twin.event(item)
            check(output, outcome, shared=bool(output["shared"]))
            took_part += bool(output["shared"])
        else:
            twin.label(item)
    assert took_part > 20


def test_a_fraud_known_elsewhere_alone_counts_as_shared() -> None:
    """Only the time of the fraud is left of it: no tile is young any more. The batch must not matter."""
    writer = streams.Writer(0, Shape(items=0))
    shared = {"merchant": "m", "terminal": "t", "device": None, "ip": None}
    first = writer.append("a", START_MS, entities=shared, partition=1)
    twin, state = NaiveFeatures(DOMAIN, TWINS), streams.state()
    here = writer.append("b", START_MS, entities=shared, partition=0)
    label = streams.replace(streams.label_of(first, fraud=True), known_ms=START_MS + HOUR_MS)
    for item in (first, here, label):
        streams.run(state, [item], streams.fixed(1))
        _ = twin.event(item) if isinstance(item, Event) else twin.label(item)
    show_others(state, twin, 2)
    later = writer.append("b", START_MS + 40 * DAY_MS, entities=shared, partition=0)
    output = streams.run(state, [later], streams.fixed(1))[0, later.offset]
    check(output, twin.event(later), shared=True)
