"""The ladder of shedding: up while behind and not gaining, down when well in time, never more than a step at once."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

import pytest

from stream.engine.pressure import STEP_MS, Ladder, Shed

DEADLINE_MS = 4_000


def run(ladder: Ladder, ages: Iterable[int], every_ms: int = 250, start_ms: int = 10_000) -> list[Shed]:
    """What each of these turns leaves out; each takes nearly all the time until the next."""
    found = []
    for turn, age in enumerate(ages):
        found.append(ladder.observe(start_ms + every_ms * turn, age))
        ladder.finished(start_ms + every_ms * (turn + 1) - 1)
    return found


def steps(found: list[Shed]) -> list[Shed]:
    """The changes, in order."""
    return [step for place, step in enumerate(found) if not place or step != found[place - 1]]


def test_an_input_that_is_always_faster_climbs_the_ladder_in_order() -> None:
    found = run(Ladder(DEADLINE_MS, Shed.MODEL), range(0, 20_000, 200))
    assert steps(found) == [Shed.NOTHING, Shed.REASONS, Shed.CHALLENGERS, Shed.MODEL]
    first = {step: found.index(step) for step in Shed}
    assert first[Shed.REASONS] * 200 > DEADLINE_MS
    assert first[Shed.CHALLENGERS] - first[Shed.REASONS] == STEP_MS / 250, "each step has its time"


@pytest.mark.parametrize("deepest", [Shed.REASONS, Shed.CHALLENGERS])
def test_no_further_than_the_settings_allow(deepest: Shed) -> None:
    assert max(run(Ladder(DEADLINE_MS, deepest), range(0, 40_000, 200))) is deepest


def test_without_a_deadline_nothing_is_shed() -> None:
    assert set(run(Ladder(0, Shed.MODEL), range(0, 10**7, 10**4))) == {Shed.NOTHING}


def test_who_gains_sheds_nothing_more() -> None:
    """A backlog of minutes after an outage that shrinks by itself."""
    assert set(run(Ladder(DEADLINE_MS, Shed.MODEL), range(300_000, 0, -40))) == {Shed.NOTHING}


def test_a_long_stillness_is_not_the_works_fault() -> None:
    ladder = Ladder(DEADLINE_MS, Shed.MODEL)
    assert run(ladder, [10, 10, 10]) == [Shed.NOTHING] * 3
    assert set(run(ladder, range(70_000, 69_000, -100), start_ms=80_000)) == {Shed.NOTHING}


def test_turns_that_take_longer_than_a_step_are_work_too() -> None:
    found = run(Ladder(DEADLINE_MS, Shed.MODEL), range(0, 200_000, 8_000), every_ms=8_000)
    assert steps(found) == list(Shed)


def _turn(ladder: Ladder, now_ms: int, age_ms: int) -> Shed:
    found = ladder.observe(now_ms, age_ms)
    ladder.finished(now_ms)
    return found


def test_down_again_only_when_well_in_time_and_step_by_step() -> None:
    ladder = Ladder(DEADLINE_MS, Shed.MODEL)
    assert run(ladder, range(0, 20_000, 200))[-1] is Shed.MODEL
    sinking = run(ladder, range(20_000, 0, -100), start_ms=10_000 + 100 * 250)
    assert steps(sinking) == [Shed.MODEL, Shed.CHALLENGERS, Shed.REASONS, Shed.NOTHING]
    assert sinking.index(Shed.CHALLENGERS) * 100 >= 20_000 - DEADLINE_MS // 2


def test_it_does_not_flutter_between_the_two_bounds() -> None:
    ladder = Ladder(DEADLINE_MS, Shed.MODEL)
    run(ladder, [5_000 + turn for turn in range(8)])
    between = random.Random(1)
    ages = [between.randrange(DEADLINE_MS // 2 + 1, DEADLINE_MS) for _ in range(200)]
    assert len(set(run(ladder, ages, start_ms=12_000))) == 1


def test_the_same_moments_give_the_same_steps() -> None:
    draw = random.Random(3)
    moments, now = [], 0
    for _ in range(2_000):
        now += draw.choice((5, 60, 300, 4_000))
        moments.append((now, draw.randrange(12_000)))
    one, other = (Ladder(DEADLINE_MS, Shed.MODEL) for _ in range(2))
    found = [_turn(one, *moment) for moment in moments]
    assert found == [_turn(other, *moment) for moment in moments]
    assert set(found) == set(Shed)
    assert all(abs(after - before) <= 1 for before, after in itertools.pairwise(found))
