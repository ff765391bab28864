"""Under pressure records lack something, and say so; outcomes, order and rows are those of a run without pressure."""

from __future__ import annotations

import pytest

from stream.clock import ManualClock
from stream.engine import pressure
from stream.scoring.lineup import CHALLENGERS, Change
from tests.checker.checks import differences, row_differences
from tests.crash.cluster import Cluster, Fault, Play
from tests.crash.scenes import turn
from tests.crash.small import FormulaScorer
from tests.crash.traffic import Chunk, Traffic
from tests.crash.undisturbed import run_undisturbed

SHED = ("shed_reasons", "shed_challengers", "shed_model")


@pytest.mark.parametrize("act", [None, "kill", "replace"])
def test_what_is_shed_never_shows_in_the_rows(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, act: str | None
) -> None:
    """Every event is older than this deadline: the workers shed and shed. Some die, and their work is replayed."""
    monkeypatch.setattr(pressure, "STEP_MS", 400)
    points = ("turn:after_commit", "flush:after_accounts", "turn:inside_commit")
    faults = [Fault(point, hit, act) for point in points for hit in (4, 9)] if act else []
    given = {"scoring.deadline_ms": 1, "batch.max_events": 4}
    cluster = Cluster(clock, given=given)
    assert Play(cluster, 41, Traffic(41, 2).chunks(400), faults).run() == []
    contents = cluster.contents()
    expected = run_undisturbed(clock, contents)
    assert row_differences(cluster.server.rows, expected.server.rows) == []
    whole = [score for _, score in contents.scores.ordered if not set(SHED) & set(score["flags"])]
    without_model = [score for _, score in contents.scores.ordered if "shed_model" in score["flags"]]
    assert len(without_model) > 20
    assert len(whole) > 5
    assert all(score["probability"] is None and "rules_only" in score["flags"] for score in without_model)
    assert differences(contents.scores, expected.contents().scores, without=frozenset(SHED)) == []


def test_the_order_of_shedding_and_its_counts(clock: ManualClock) -> None:
    """Reasons, then challengers, then the model; each is counted; with the input gone, all comes back."""
    cluster = Cluster(clock, partitions=1, given={"scoring.deadline_ms": 2_000})
    traffic = Traffic(42, 1)
    worker = cluster.worker("w0")
    worker._turn.change_models([Change(CHALLENGERS[0], FormulaScorer("rival"))])
    metrics = cluster.metrics[0]
    steps = []
    for _ in range(120):
        # 64 come in 100 ms, and two turns do 16 each.
        cluster.publish(Chunk(tuple(traffic.event() for _ in range(64))))
        turn(worker.run_once, clock, 2)
        steps.append(int(metrics.shed_step._value.get()))
    assert sorted(steps) == steps, "never back while the input is faster"
    assert set(steps) == {0, 1, 2, 3}
    for _ in range(4_000):
        turn(worker.run_once, clock, 1)
        if cluster.drained():
            break
    # The input slows down; the worker is in time again, and whole.
    for _ in range(80):
        cluster.publish(Chunk((traffic.event(),)))
        turn(worker.run_once, clock, 2)
    assert metrics.shed_step._value.get() == 0
    worker.finish()
    scores = [score for _, score in cluster.contents().scores.ordered]
    first = {flag: next(i for i, score in enumerate(scores) if flag in score["flags"]) for flag in SHED}
    assert first["shed_reasons"] < first["shed_challengers"] < first["shed_model"]
    counted = [metrics.shed_events.labels(step)._value.get() for step in ("reasons", "challengers", "model")]
    assert counted == sorted(counted, reverse=True)
    assert counted[1] == sum("shed_challengers" in score["flags"] for score in scores)
    assert counted[2] == sum("shed_model" in score["flags"] for score in scores) > 50
    assert all(("shadow" in score) == ("shed_challengers" not in score["flags"]) for score in scores)
    alerts = [alert for _, alert in cluster.contents().alerts.ordered]
    assert any("shed_reasons" in alert["flags"] for alert in alerts)
    assert not scores[-1]["flags"] or "shed_reasons" not in scores[-1]["flags"]
