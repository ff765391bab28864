"""Packed rows: every class there and back, foreign bytes refused, and what other partitions showed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from stream.errors import ConfigError
from stream.features.assemble import FeatureState
from stream.features.entity_rows import EntityTable
from stream.features.operators import (
    Amount,
    Count,
    EntityAccounts,
    EntityCount,
    EntityFrauds,
    EntityFraudShare,
    EntityMax,
    EntitySinceGenuine,
    EntityStreak,
    EntityStreakAge,
)
from stream.features.pool import RowPool, identity_codes
from stream.features.rows import NEVER, RING, code_bits, linear_count, row_offsets
from stream.features.spec import Domain, Entity
from tests.parity import streams
from tests.parity.streams import DAY_MS, DOMAIN, START_MS, Shape

CLASS_BYTE = 16
START_HOUR = START_MS // 3_600_000 % 24


def state_after(events: int, labels: int = 0, domain: Domain = DOMAIN, **given: Any) -> FeatureState:
    """One account with so many events, an hour apart, and labels of the last ones."""
    writer = streams.Writer(3, Shape(items=0))
    past = [writer.append("a", START_MS + i * 3_600_000, **given) for i in range(events)]
    for event in past[-labels:] if labels else []:
        writer.verdict(streams.label_of(event, fraud=True))
    state = streams.state(domain=domain)
    streams.run(state, writer.log, streams.fixed(50))
    return state


def moved(state: FeatureState, kind: str) -> tuple[RowPool, RowPool, np.ndarray, np.ndarray]:
    """Packs all rows of a kind and unpacks them in another state: both pools, and the slots in each."""
    pool, other = state.pool(kind), streams.state(domain=state.domain)
    slots = pool.slots_of(0)
    names = [(kind, 0, pool.identity[slot]) for slot in slots.tolist()]
    other.admit([(kind, 0, "filler")], [b""], [None])  # so that the slots differ
    other.admit(names, [b"key"] * len(names), state.pack(kind, slots))
    return pool, other.pool(kind), slots, other.pool(kind).find(0, [name[2] for name in names])


@pytest.mark.parametrize(
    ("events", "labels", "expected"),
    [
        (1, 0, 0),
        (8, 0, 0),
        (9, 0, 1),
        (16, 2, 1 + 4),
        (17, 0, 2),
        (32, 1, 2 + 4),
        (33, 0, 3),
        (64, 3, 3 + 4),
        (65, 0, 3 + 8),
        (150, 20, 3 + 4 + 8),
        (7, 7, 0 + 4),
    ],
)
def test_every_class_there_and_back(events: int, labels: int, expected: int) -> None:
    state = state_after(events, labels, entities={"merchant": "m", "terminal": "t", "device": "d", "ip": "10.0.0.1"})
    for kind in ("account", *state.entities):
        pool, other, slots, places = moved(state, kind)
        for field in pool.fields:
            if not field.name.startswith("other_"):
                assert pool[field.name][slots].tobytes() == other[field.name][places].tobytes(), field.name
        packed = state.pack(kind, slots)
        days = (events - 1) // 24 + 2 if events > 24 - START_HOUR else 1
        entity = -(-min(days, state.entities["ip"].length) // 8) + (64 if labels else 0)
        assert {row[CLASS_BYTE] for row in packed} == {expected if kind == "account" else entity}
        assert not other.dirty[places].any()


def test_a_label_of_an_unknown_account_makes_a_row_too() -> None:
    writer = streams.Writer(3, Shape(items=0))
    event = writer.append("a", START_MS)
    writer.verdict(streams.label_of(event, fraud=True))
    state = streams.state()
    streams.run(state, writer.log[1:], streams.fixed(1))
    pool, other, slots, places = moved(state, "account")
    assert state.pack("account", slots)[0][CLASS_BYTE] == 4
    assert all(pool[f.name][slots].tobytes() == other[f.name][places].tobytes() for f in pool.fields)


def test_rows_of_several_classes_in_one_call() -> None:
    state = streams.state()
    log = streams.random_log(4, Shape(items=400, accounts=16, busy=0.4, labels=0.01))
    streams.run(state, log, streams.fixed(50))
    pool, other, slots, places = moved(state, "account")
    packed = state.pack("account", slots)
    assert len({row[CLASS_BYTE] for row in packed}) > 3
    assert len({len(row) for row in packed}) > 3
    assert all(pool[f.name][slots].tobytes() == other[f.name][places].tobytes() for f in pool.fields)


@pytest.mark.parametrize("length", [1, 5, 64, 100])
@pytest.mark.parametrize("events", [3, 20, 64, 130])
def test_any_sequence_length(length: int, events: int) -> None:
    state = state_after(events, domain=dataclasses.replace(DOMAIN, sequence_length=length))
    pool, other, slots, places = moved(state, "account")
    assert pool["steps"][slots].tobytes() == other["steps"][places].tobytes()


def test_the_offsets_stand_first() -> None:
    state = state_after(9, labels=2)
    pool = state.accounts.pool
    row = state.pack("account", pool.slots_of(0))[0]
    assert row_offsets(row) == (int(pool["offset"][0]), int(pool["labels_offset"][0]))
    assert row_offsets(row)[0] >= 9
    assert row_offsets(row)[1] >= 2


def refused(kind: str, rows: Sequence[bytes]) -> None:
    state = streams.state()
    slots = state.pool(kind).add(0, [str(i) for i in range(len(rows))])
    owner = state.accounts if kind == "account" else state.entities[kind]
    with pytest.raises(ValueError, match="not written by this version"):
        owner.unpack(slots, rows)


@pytest.mark.parametrize("kind", ["account", "merchant"])
def test_foreign_bytes_are_refused(kind: str) -> None:
    state = state_after(5, entities={"merchant": "m", "terminal": None, "device": None, "ip": None})
    row = state.pack(kind, state.pool(kind).slots_of(0))[0]
    for code in (16, 77, 255):
        refused(kind, [row[:CLASS_BYTE] + bytes([code]) + row[CLASS_BYTE + 1 :]])
    refused(kind, [row[:CLASS_BYTE] + bytes([3]) + row[CLASS_BYTE + 1 :]])
    for length in (0, 1, 16, 17, len(row) - 1):
        refused(kind, [row[:length]])
    refused(kind, [row + b"\0"])
    refused(kind, [row, row[:-1], row + b"\0"])  # wrong lengths that even out


def test_exactly_the_horizon_is_not_idle() -> None:
    for gap_ms, since in ((30 * DAY_MS, 0), (30 * DAY_MS + 1, 1)):
        writer = streams.Writer(3, Shape(items=0))
        writer.append("a", START_MS)
        writer.append("a", START_MS + gap_ms)
        state = streams.state()
        streams.run(state, writer.log, streams.fixed(2))
        assert state.accounts.pool["since"][0] == since


def test_idle_accounts_begin_anew_but_know_their_last_ids() -> None:
    writer = streams.Writer(3, Shape(items=0))
    past = [writer.append("a", START_MS + i, event_id=f"e{i}") for i in range(70)]
    writer.verdict(streams.label_of(past[0], fraud=True))
    writer.append("a", START_MS + 69 + 30 * DAY_MS + 1)
    repeat = writer.append("a", START_MS, event_id="e69")
    state = streams.state()
    output = streams.run(state, writer.log, streams.fixed(1))[0, repeat.offset]
    assert output["duplicate"]
    pool = state.accounts.pool
    assert pool["since"][0] == 70
    assert pool["folded"][0] == 71
    assert pool["frauds"][0] == 0
    assert pool["left"][0] == NEVER
    assert (pool["tile_epoch"][0] == -1).all()
    assert pool["hours"][0].sum() == pool["norm_n"][0] == 1
    assert (pool["ring_time"][0] > NEVER).sum() == 1


# --- small domains of a user's own


def small_domain(**changes: Any) -> Domain:
    plain = dataclasses.replace(
        DOMAIN,
        entities=(),
        categories=(),
        step=(Amount("amount", "amount", log=True),),
        aggregates=(Count("count_24h", "velocity", window="24h"),),
    )
    return dataclasses.replace(plain, **changes)


def test_a_domain_without_entities_and_codes() -> None:
    writer = streams.Writer(3, Shape(items=0))
    for i in range(100):
        writer.append("a", START_MS + i * 60_000)
    state = streams.state(domain=small_domain())
    outputs = streams.run(state, writer.log, streams.fixed(30))
    assert outputs[0, writer.log[-1].offset]["aggregates"].tolist() == [100]
    pool, other, slots, places = moved(state, "account")
    assert all(pool[f.name][slots].tobytes() == other[f.name][places].tobytes() for f in pool.fields)


# --- bits and tiles


def test_each_code_sets_one_bit_and_a_missing_one_none() -> None:
    codes = np.array([0, 1, 2, 2**32 - 1, 2**31], np.uint32)
    assert np.bitwise_count(code_bits(codes)).tolist() == [0, 1, 1, 1, 1]
    numbers = np.arange(1, 20_000, dtype=np.uint32)
    share = np.bincount(np.log2(code_bits(numbers).astype(np.float64)).astype(np.int64), minlength=64) / len(numbers)
    assert abs(share - 1 / 64).max() < 0.1 / 64


def test_the_others_counts_are_added_tile_by_tile_and_day_by_day() -> None:
    keeps = {"merchant": ("day_max", "day_accounts")}
    rows = EntityTable([Entity("merchant", "merchant_id", ("24h", "7d"))], "7d", 8, keeps).rows["merchant"]
    slots = rows.pool.add(0, ["here", "p1", "p2", "p3"])
    pool, width = rows.pool, DAY_MS // 16
    for slot, (clock_ms, count, fraud_ms) in zip(
        slots[1:].tolist(),
        [(50 * DAY_MS, 3, NEVER), (51 * DAY_MS + 2 * width, 4, 70), (51 * DAY_MS, 5, 90)],
        strict=True,
    ):
        pool["clock"][slot] = clock_ms
        pool["tiles_24h"][slot, 0] = pool["day_count"][slot, 0] = pool["day_fraud"][slot, 0] = count
        pool["day_sum"][slot, 0] = 100 * count
        pool["day_max"][slot, 0], pool["day_accounts"][slot, 0] = 10 * count, count
        pool["last_fraud"][slot] = fraud_ms
    others = dict(enumerate(rows.pack(slots[1:]), start=1))
    here = slots[:1]
    for now_ms in (12, 13):  # read again: replaced, not added
        rows.set_others(here, [others], now_ms=now_ms)
        assert pool["other_clock"][here[0]] == 51 * DAY_MS + 2 * width
        assert pool["other_tiles_24h"][here[0]].tolist() == [4, 0, 5] + [0] * 13  # the first is too old for a tile
        assert pool["other_day_count"][here[0]].tolist() == [9, 3] + [0] * 13
        assert pool["other_day_fraud"][here[0]].tolist() == [9, 3] + [0] * 13
        assert pool["other_day_sum"][here[0]].tolist() == [900, 300] + [0] * 13
        assert pool["other_day_max"][here[0]].tolist() == [50, 30] + [0] * 13
        assert pool["other_day_accounts"][here[0]].tolist() == [4 | 5, 3] + [0] * 13
        assert pool["other_last_fraud"][here[0]] == 90
        assert pool["other_read_ms"][here[0]] == now_ms
    rows.set_others(here, [{}], now_ms=14)  # their copies have expired
    assert not pool["other_day_count"][here[0]].any()
    assert pool["other_last_fraud"][here[0]] == pool["other_clock"][here[0]] == NEVER


def test_a_row_holds_no_largest_amounts_and_accounts_that_nothing_reads() -> None:
    writer = streams.Writer(3, Shape(items=0))
    for i in range(40):
        writer.append(f"a{i % 5}", START_MS + i * 3_600_000, entities={"merchant": "m"})
    sizes = {}
    for read in ((EntityCount,), (EntityMax,), (EntityAccounts,)):
        domain = small_domain(
            entities=(Entity("merchant", "merchant_id", ("24h", "7d")),),
            aggregates=tuple(operator("column", "merchant", window="7d") for operator in read),
        )
        state = streams.state(domain=domain)
        streams.run(state, writer.log, streams.fixed(9))
        pool = state.pool("merchant")
        held = {"day_max", "day_accounts"} & {field.name for field in pool.fields}
        assert held == {name for operator in read for name in operator.keeps}
        sizes[read[0]] = len(state.pack("merchant", pool.slots_of(0))[0])
    plain, largest, accounts = sizes.values()
    assert (largest - plain, accounts - plain) == (8 * 4, 8 * 8)  # for each of eight days


@pytest.mark.parametrize("seed", range(3))
def test_what_other_kinds_keep_changes_nothing_of_a_kind(seed: int) -> None:
    """They share a table: longer days, other windows and largest amounts of theirs lie beside its own."""
    log = streams.random_log(seed, Shape(items=400, pace_ms=8 * 3_600_000, labels=0.3))
    own = (
        EntityCount("count", "device", entity="device", window="24h"),
        EntityCount("count_1h", "device", entity="device", window="1h"),
        EntityFrauds("frauds", "device", entity="device", window="24h"),
        EntityFraudShare("share", "device", entity="device", window="24h"),
        EntitySinceGenuine("genuine", "device", entity="device"),
        EntityStreak("streak", "device", entity="device"),
        EntityStreakAge("age", "device", entity="device"),
    )
    others = (
        EntityCount("merchant_count", "merchant", entity="merchant", window="30d"),
        EntityMax("merchant_max", "merchant", entity="merchant", window="7d"),
        EntityAccounts("ip_accounts", "ip", entity="ip", window="24h"),
    )
    device = Entity("device", "device_id", ("24h", "1h"))
    around = (Entity("merchant", "merchant_id", ("10min", "7d", "30d")), device, Entity("ip", "ip", ("1h", "24h")))
    alone = streams.state(domain=small_domain(entities=(device,), aggregates=own))
    beside = streams.state(domain=small_domain(entities=around, aggregates=(*own, *others)))
    expected, found = (streams.run(state, log, streams.varied(seed)) for state in (alone, beside))
    for place, output in expected.items():
        assert output["aggregates"].tobytes() == found[place]["aggregates"][: len(own)].tobytes()
    slots, places = alone.pool("device").slots_of(0), beside.pool("device").slots_of(0)
    assert alone.pool("device").identities_of(slots) == beside.pool("device").identities_of(places)
    assert alone.pack("device", slots) == beside.pack("device", places)
    assert alone.entity_table.length < beside.entity_table.length


def test_accounts_are_counted_to_a_few_in_a_hundred() -> None:
    for accounts, tolerance in ((1, 0.02), (10, 0.15), (30, 0.2), (100, 0.35)):
        codes = identity_codes([f"card-{accounts}-{i}" for i in range(accounts)])
        found = linear_count(np.bitwise_or.reduce(code_bits(codes), keepdims=True))[0]
        assert abs(found - accounts) <= tolerance * accounts, (accounts, found)
    assert linear_count(np.array([0, 2**64 - 1], np.uint64)).tolist() == [0.0, 64 * np.log(64)]


@pytest.mark.parametrize(("window", "delay"), [("36h", "7d"), ("7d", "30h"), ("7d", "12h")])
def test_longer_windows_and_the_delay_are_whole_days(window: str, delay: str) -> None:
    with pytest.raises(ConfigError, match="must be whole days"):
        EntityTable([Entity("merchant", "merchant_id", (window,))], delay, 8)


def test_a_ring_holds_as_much_as_duplicates_are_told_from() -> None:
    state = state_after(RING + 1)
    offsets = state.accounts.pool["ring_offset"][0].tolist()
    assert len(set(offsets)) == RING
    assert min(offsets) > 0  # the first event has left
