"""The plan of a soak: a pure function of its seed, in which everything comes."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.soak.faults import FAULTS
from tests.soak.run import quantile
from tests.soak.schedule import KILLS, OTHERS, POINTS, plan


def test_a_seed_gives_one_plan() -> None:
    assert plan(1, 50) == plan(1, 50)
    assert plan(1, 50) != plan(2, 50)
    assert [str(strike) for strike in plan(7, 20).strikes] == [str(strike) for strike in plan(7, 20).strikes]


@pytest.mark.parametrize("kills", [0, 1, 10, 50, 1_000])
def test_a_plan_has_its_kills_and_every_fault(kills: int) -> None:
    planned = plan(3, kills)
    faults = Counter(strike.fault for strike in planned.strikes)
    assert planned.kills == kills == sum(faults[name] for name in KILLS)
    assert set(OTHERS) | {"log_truncated"} <= set(faults)
    assert faults["log_truncated"] == 1
    assert planned.strikes[-1].fault == "log_truncated", "nothing may need the whole log after it"
    if kills >= len(POINTS):
        assert {strike.point for strike in planned.strikes if strike.fault == "kill_at"} == set(POINTS)


def test_every_planned_fault_can_be_done() -> None:
    assert set(KILLS) | set(OTHERS) | {"log_truncated"} == set(FAULTS)


def test_a_plan_that_is_cut_begins_alike() -> None:
    assert plan(5, 100).strikes[:10] == [*plan(5, 100).strikes][:10]


def test_quantiles() -> None:
    assert quantile([], 0.5) is None
    assert [quantile([1.0, 2.0, 3.0, 4.0], share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 3.0, 4.0, 4.0]
