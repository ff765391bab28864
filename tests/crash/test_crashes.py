"""Workers die, stand still and take over at every point of a turn, a flush and a restore: nobody can tell afterwards.

Every run is checked from the topics (one outcome per input, in order, invariant 1 after every step) and
against an undisturbed run over the same log: equal scores and alerts to 1e-6, and equal rows bit for bit.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from stream.clock import ManualClock
from stream.engine import flush
from tests.crash.cluster import FAULT_POINTS, Cluster, Fault, Play
from tests.crash.traffic import Traffic
from tests.crash.undisturbed import compare, gaps


def play(
    clock: ManualClock,
    seed: int,
    faults: list[Fault],
    *,
    events: int = 100,
    workers: int = 2,
    given: Mapping[str, object] | None = None,
) -> Play:
    """Plays to the end and complains about everything that is not as if nothing had happened."""
    cluster = Cluster(clock, given=given)
    played = Play(cluster, seed, Traffic(seed, 2).chunks(events), faults, workers)
    assert played.run() == []
    assert compare(cluster, clock, given=given) == []
    return played


@pytest.mark.parametrize("act", ["kill", "replace", "hold"])
@pytest.mark.parametrize("point", [point for point in FAULT_POINTS if not point.startswith("restore")])
def test_a_crash_at_any_point_leaves_no_trace(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, point: str, act: str
) -> None:
    """ "kill": the same id comes back; "replace": another id takes over; "hold": the old one wakes up as a zombie."""
    monkeypatch.setattr(flush, "_WRITE_ROWS", 4)
    faults = [Fault(point, hit, act) for hit in (3, 9)]
    played = play(clock, FAULT_POINTS.index(point), faults, given={"state.flush_interval_ms": 150})
    assert len(played.struck) == 2
    if (point, act) == ("turn:inside_commit", "hold"):
        assert any(slot.stopped for slot in played.slots), "the zombie's transaction was fenced by the new owner"


@pytest.mark.parametrize("act", ["kill", "replace", "hold"])
def test_a_crash_while_restoring_leaves_no_trace(clock: ManualClock, act: str) -> None:
    """Nothing is flushed before the first crash, so the replay takes many steps; it is cut short again and again."""
    given = {"state.flush_interval_ms": 10**6, "batch.max_events": 4}
    faults = [Fault("turn:after_commit", 30, "kill"), *(Fault("restore:after_step", hit, act) for hit in (3, 9, 12))]
    faults.append(Fault("restore:after_claim", 5, act))
    played = play(clock, 11, faults, events=170, workers=1 if act == "kill" else 2, given=given)
    assert set(played.struck) == set(faults)
    restored = [metrics.restores.labels("replay")._value.get() for metrics in played.cluster.metrics]
    assert sum(restored) >= 4


@pytest.mark.parametrize("seed", range(8))
def test_storms(clock: ManualClock, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Several faults in a row, on one to three workers, with quick and slow flushes, small and large turns."""
    draw = random.Random(1000 + seed)
    monkeypatch.setattr(flush, "_WRITE_ROWS", draw.choice([1, 3, 4096]))
    acts = ("kill", "replace", "hold", "slow")
    faults = [Fault(draw.choice(FAULT_POINTS), draw.randrange(1, 30), draw.choice(acts)) for _ in range(7)]
    given = {
        "state.flush_interval_ms": draw.choice([10, 500, 100_000]),
        "batch.max_events": draw.choice([3, 16, 32]),
        "state.entity_scope": draw.choice(["own", "all"]),
    }
    played = play(clock, seed, faults, events=180, workers=1 + seed % 3, given=given)
    assert played.struck


def test_the_traffic_is_worth_the_name(clock: ManualClock) -> None:
    """Duplicates, late ones, poison, labels, alerts, gaps and accounts with tiles all occur."""
    played = play(clock, 1, [], events=500, workers=1)
    contents = played.cluster.contents()
    records = [record for found in contents.transactions.values() for record in found]
    scores = [score for _, score in contents.scores.ordered]
    dead = {origin for origin, _ in contents.dead_letters.ordered}
    assert len(records) - len(scores) - sum(origin[0] == "transactions" for origin in dead) > 10
    assert sum(origin[0] == "labels" for origin in dead) > 2
    assert len({letter["code"] for _, letter in contents.dead_letters.ordered}) > 4
    assert {flag for score in scores for flag in score["flags"]} >= {"late", "saturated", "no_rate"}
    assert 0.02 < len(contents.alerts.ordered) / len(scores) < 0.5
    assert {score["decision"] for score in scores} == {"approve", "review", "decline"}
    assert all(missing > 5 for missing in gaps(contents.transactions))
    assert len({score["labels_offset"] for score in scores}) > 20
    accounts = [row for key, row in played.cluster.server.rows.items() if b":account:" in key]
    assert any(row[16] & 8 for row in accounts), "no account with tiles"
    assert sum(score["features"]["merchant_frauds"] or 0 for score in scores) > 20
