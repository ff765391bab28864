"""The benchmarks' arithmetic: ratios, bars, and the check that must be able to fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import check, report
from bench.cases.accounts import drawn
from bench.processes import Moment, between


def _case(rate: float, model: float) -> dict[str, float]:
    return {"events_per_cpu_s": rate, "model_events_per_cpu_s": model}


CASES: dict[str, Any] = {
    "engine": _case(10_000, 80_000),
    "engine-fast": _case(20_000, 80_000),
    "quix": _case(1_000, 40_000),
    "tutorial": _case(500, 80_000),
    "workers": {"one": {"events_per_s": 4_000}, "two": {"events_per_s": 6_000}},
    "accounts": {"by": {"zipf 10": {"worker_us": 100.0}, "zipf 20": {"worker_us": 120.0}, "uniform 10": {}}},
    "state": {"redis": {"row:account": {"to_packed": 1.2}}},
}


def test_ratios_divide_by_the_unit_of_their_own_moment() -> None:
    found = report.ratios(CASES)
    assert found["engine_to_model"] == 0.125
    # The machine was half as fast while the rival ran: 1,000 of 40,000 are as good as 2,000 of 80,000.
    assert found["engine_to_quix"] == 5.0
    assert found["engine_fast_to_tutorial"] == 40.0
    assert found["workers_2_to_1"] == 1.5
    assert found["accounts_largest_to_smallest"] == 1.2
    assert found["state_bytes_to_packed"] == 1.2


def test_a_case_that_did_not_run_has_no_ratio() -> None:
    assert report.ratios({"engine": CASES["engine"]}) == {"engine_to_model": 0.125}


def test_bars_hold_from_their_own_side() -> None:
    bars = {bar.name: bar for bar in report.BARS}
    assert bars["engine_to_quix"].holds(5.0)
    assert not bars["engine_to_quix"].holds(4.9)
    assert bars["latency_ms 2000 p99"].holds(25.0)
    assert not bars["latency_ms 2000 p99"].holds(25.1)


def test_what_misses_its_bar_stays_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"cases": {}, "ratios": {"engine_to_model": 0.1, "engine_to_quix": 6.0}, "latency_ms": {}}
    report.print_tables(document, colour=True)
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if "NOT MET" in line and "engine_to_model" in line and "\033[31m" in line]
    assert [line for line in printed if line.startswith("engine_to_quix") and line.endswith("met")]


def test_a_stretch_is_measured_between_two_moments() -> None:
    start = Moment(10.0, 100, {"worker": 1.0, "kafka": 2.0})
    found = between(start, Moment(12.0, 1_100, {"worker": 1.5, "kafka": 2.1}))
    assert (found["events_per_s"], found["worker_us"], found["kafka_us"]) == (500.0, 500.0, 100.0)
    assert found["events_per_cpu_s"] == 2_000.0


def test_the_check_finds_what_has_become_worse() -> None:
    committed = {"engine_to_model": 0.10, "state_bytes_to_packed": 1.2, "gone": 1.0}
    same = check.compare(committed, {"engine_to_model": 0.09, "state_bytes_to_packed": 1.3, "new": 1.0}, 0.2)
    assert [verdict for *_, verdict in same] == ["same", "same"]
    slower = check.compare(committed, {"engine_to_model": 0.07, "state_bytes_to_packed": 2.0}, 0.2)
    assert [verdict for *_, verdict in slower] == ["WORSE", "WORSE"]
    faster = check.compare(committed, {"engine_to_model": 0.2}, 0.2)
    assert [verdict for *_, verdict in faster] == ["better"]


def test_without_committed_ratios_the_check_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="UPDATE=1"):
        check.committed_ratios(tmp_path / "check.json")


def test_the_committed_ratios_are_those_of_cases_that_the_check_runs() -> None:
    committed = json.loads(check.COMMITTED.read_text())
    assert committed.keys() >= {"inside_to_model", "offline_to_model", "engine_fast_to_model"}
    assert all(value > 0 for value in committed.values())


@pytest.mark.parametrize("law", ["uniform", "zipf"])
def test_accounts_are_drawn_alike_each_time_and_within_bounds(law: str) -> None:
    first, again = drawn(law, 10_000, 20_000), drawn(law, 10_000, 20_000)
    assert np.array_equal(first, again)
    assert set(first.tolist()) <= set(range(10_000))
    share = np.bincount(first).max() / len(first)
    assert share < (0.001 if law == "uniform" else 0.012)
