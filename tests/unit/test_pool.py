"""The pool of rows: who may be evicted, what a full arena says, and that nothing of a former row remains."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from stream.features.pool import ArenaFullError, RowField, RowPool

FIELDS = (RowField("value", "<i8", (), -7), RowField("list", "<f4", (3,)))


def pool(capacity: int = 4) -> RowPool:
    return RowPool("account", FIELDS, capacity)


def test_rows_are_found_by_partition_and_identity() -> None:
    rows = pool()
    here, there = rows.add(0, ["a", "b"]), rows.add(1, ["a"])
    assert rows.find(0, ["b", None, "a", "c", "b"]).tolist() == [here[1], -1, here[0], -1, here[1]]
    assert rows.find(1, ["a", "b"]).tolist() == [there[0], -1]
    assert rows.find(2, ["a"]).tolist() == [-1]
    assert len(rows) == 3
    assert rows.partition_of(np.concatenate((here, there))).tolist() == [0, 0, 1]
    assert sorted(rows.slots_of(0).tolist()) == sorted(here.tolist())
    assert rows.slots_of(9).tolist() == []


def test_a_new_row_is_empty_whatever_stood_there() -> None:
    rows = pool(1)
    slot = rows.add(0, ["a"])
    rows["value"][slot], rows["list"][slot], rows.key[slot[0]] = 5, 2.5, b"key"
    rows.dirty[slot] = True
    rows.drop(0)
    again = rows.add(0, ["b"])
    assert again.tolist() == slot.tolist()
    assert rows["value"][again].tolist() == [-7]
    assert rows["list"][again].tolist() == [[0, 0, 0]]
    assert (rows.key[again[0]], rows.identity[again[0]], bool(rows.dirty[again[0]])) == (b"", "b", False)


def test_the_row_used_longest_ago_goes_first() -> None:
    rows = pool(3)
    for identity in "abc":
        rows.add(0, [identity])
        rows.next_turn()
    rows.find(0, ["a"])
    rows.next_turn()
    rows.add(0, ["d"])
    assert (rows.find(0, ["a", "b", "c", "d"]) >= 0).tolist() == [True, False, True, True]
    assert rows.evictions == 1


def test_neither_dirty_rows_nor_those_of_this_turn_are_evicted() -> None:
    rows = pool(4)
    slots = rows.add(0, ["old dirty", "old clean", "found", "late"])
    rows.dirty[slots[0]] = True
    rows.next_turn()
    rows.find(0, ["found"])
    rows.add(0, ["new", "newer"])
    found = rows.find(0, ["old dirty", "old clean", "found", "late", "new", "newer"])
    assert (found >= 0).tolist() == [True, False, True, False, True, True]


def test_a_full_arena_says_so_and_loses_nothing() -> None:
    rows = pool(3)
    slots = rows.add(0, ["secret-1", "secret-2", "secret-3"])
    rows.dirty[slots[:2]] = True
    rows.next_turn()
    with pytest.raises(ArenaFullError, match=r"account arena: 3 rows") as caught:
        rows.add(0, ["x", "y"])
    assert "secret" not in str(caught.value)
    assert (rows.find(0, ["secret-1", "secret-2", "x", "y"]) >= 0).tolist() == [True, True, False, False]
    rows.add(0, ["x"])  # the clean one's place
    rows.dirty[slots[:2]] = False
    rows.next_turn()
    rows.add(0, ["y"])
    assert len(rows) == 3


def test_dirty_slots_of_some_partitions() -> None:
    rows = pool(8)
    first, second = rows.add(0, ["a", "b"]), rows.add(1, ["a", "b"])
    rows.dirty[[first[1], second[0]]] = True
    assert rows.dirty_slots([0]).tolist() == [first[1]]
    assert rows.dirty_slots(p for p in (1, 5)).tolist() == [second[0]]
    assert rows.dirty_slots([0, 1]).tolist() == sorted([int(first[1]), int(second[0])])
    assert rows.dirty_slots([]).tolist() == []


def test_dropping_a_partition_leaves_the_others() -> None:
    rows = pool(4)
    rows.dirty[rows.add(0, ["a", "b"])] = True
    kept = rows.add(1, ["a"])
    rows.drop(0)
    rows.drop(7)
    assert rows.find(0, ["a", "b"]).tolist() == [-1, -1]
    assert rows.find(1, ["a"]).tolist() == kept.tolist()
    assert len(rows) == 1
    rows.add(0, ["c", "d", "e"])
    assert len(rows) == 4


class PoolAgainstDict(RuleBasedStateMachine):
    """Any sequence of calls: what the dict says must stand in the pool, and the protected rows stay."""

    @initialize(capacity=st.integers(1, 40))
    def begin(self, capacity: int) -> None:
        self.rows = pool(capacity)
        self.values: dict[tuple[int, str], int] = {}
        self.protected: set[tuple[int, str]] = set()
        self.written = 0

    @rule(partition=st.integers(0, 2), names=st.lists(st.sampled_from("abcdefghijklmnop"), unique=True, max_size=6))
    def touch(self, partition: int, names: list[str]) -> None:
        missing = [n for n, slot in zip(names, self.rows.find(partition, names).tolist(), strict=True) if slot < 0]
        self.protected |= {(partition, name) for name in names if name not in missing}
        try:
            slots = self.rows.add(partition, missing)
        except ArenaFullError:
            assert len(self.protected) + len(missing) > self.rows.capacity
            return
        assert (self.rows["value"][slots] == -7).all()
        for name, slot in zip(missing, slots.tolist(), strict=True):
            self.written += 1
            self.rows["value"][slot] = self.values[partition, name] = self.written
            self.protected.add((partition, name))

    @rule(partition=st.integers(0, 2), name=st.sampled_from("abcdefghijklmnop"))
    def change(self, partition: int, name: str) -> None:
        slot = int(self.rows.find(partition, [name])[0])
        if slot >= 0:
            self.written += 1
            self.rows["value"][slot] = self.values[partition, name] = self.written
            self.rows.dirty[slot] = True
            self.protected.add((partition, name))

    @rule()
    def turn(self) -> None:
        self.rows.next_turn()
        dirty = self.rows.dirty_slots(range(3)).tolist()
        self.protected = {(int(self.rows.partition_of(np.array([s]))[0]), self.rows.identity[s]) for s in dirty}

    @rule()
    def flush(self) -> None:
        self.rows.dirty[self.rows.dirty_slots(range(3))] = False

    @rule(partition=st.integers(0, 2))
    def drop(self, partition: int) -> None:
        self.rows.drop(partition)
        self.protected = {name for name in self.protected if name[0] != partition}

    @invariant()
    def rows_hold_what_was_written(self) -> None:
        held = {}
        for partition in range(3):
            for slot in self.rows.slots_of(partition).tolist():
                assert self.rows.partition_of(np.array([slot])).tolist() == [partition]
                held[partition, self.rows.identity[slot]] = int(self.rows["value"][slot])
        assert len(self.rows) == len(held) <= self.rows.capacity
        assert self.protected <= held.keys()
        assert all(self.values[name] == value for name, value in held.items())


PoolAgainstDict.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)
test_pool_against_dict = PoolAgainstDict.TestCase
