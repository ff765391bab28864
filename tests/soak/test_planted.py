"""One defect at a time is planted into workers on the real servers, and the soak's checker must turn red.

The same scenes without a defect are green. (In memory, with more kinds of defects: crash/test_checker_can_fail.py.)
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

import pytest

from tests.broker.harness import PATIENCE_S, until
from tests.soak.conftest import MakeScene
from tests.soak.late import LateWay
from tests.soak.plants import PLANTS
from tests.soak.scene import Scene

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

Play = Callable[[Scene, Sequence[str]], list[str]]


def quiet(scene: Scene, plants: Sequence[str]) -> list[str]:
    """Nothing happens to the worker."""
    worker = scene.worker("w0", plants=plants)
    scene.publish(120)
    scene.deployment.wait_done()
    assert worker.terminate() == 0
    return scene.complaints()


def killed_inside_commit(scene: Scene, plants: Sequence[str]) -> list[str]:
    """It dies when the offsets are in the transaction and the transaction is open; its successor ends the work."""
    worker = scene.worker("w0", plants=plants)
    worker.wait_ready()
    worker.order("turn:inside_commit", hit=3)
    scene.publish(120)
    assert worker.wait_reached(PATIENCE_S), worker.output()
    assert worker.wait_exit() == -signal.SIGKILL
    ahead = scene.rows_ahead()
    successor = scene.worker("w0")
    scene.deployment.wait_done()
    assert successor.terminate() == 0
    return ahead + scene.complaints()


def zombie_in_mid_flush(scene: Scene, plants: Sequence[str]) -> list[str]:
    """It stands still with part of a flush done, loses its partitions, and goes on when all has been done."""
    sleeper = scene.worker("w0", plants=plants)
    scene.publish(80)
    scene.deployment.wait_done()
    sleeper.order("flush:after_chunk", act="stop")
    scene.publish(80)
    assert sleeper.wait_reached(PATIENCE_S)
    other = scene.worker("w1")
    scene.publish(80)
    scene.deployment.wait_done()
    assert other.terminate() == 0
    sleeper.send(signal.SIGCONT)
    before = len(sleeper.logs("assigned"))
    until(lambda: not sleeper.alive or len(sleeper.logs("assigned")) > before, "the sleeper has found out")
    if sleeper.alive:
        assert sleeper.terminate() == 0
    else:
        assert sleeper.exit_code == 10
    return scene.complaints()


def a_write_that_comes_late(scene: Scene, plants: Sequence[str]) -> list[str]:
    """Rows of a flush that timed out reach Redis when a later flush has written newer ones, and not yet W.

    The owner and the head are the same all the while: of all checks only the comparison of offsets can refuse them.
    """
    way = LateWay(scene.deployment.settings.redis.url.get_secret_value())
    worker = scene.worker("w0", plants=plants, redis__url=way.url, redis__timeout_ms=300)
    scene.publish(60)
    scene.everybody()
    until(scene.flushed, "the first rows are in Redis")
    way.hold_next_write()
    scene.everybody()
    until(lambda: way.holds and bool(worker.logs("flush failed; rows wait in memory")), "a flush has timed out")
    scene.everybody()
    scene.deployment.wait_done()
    worker.order("flush:after_accounts", act="stop")
    way.let_through()
    assert worker.wait_reached(PATIENCE_S)
    way.deliver()
    worker.send(signal.SIGCONT)
    assert worker.terminate() == 0
    way.close()
    return scene.complaints()


@pytest.mark.parametrize("play", [quiet, killed_inside_commit, zombie_in_mid_flush, a_write_that_comes_late])
def test_nothing_is_found_where_nothing_is_planted(scene: MakeScene, play: Play) -> None:
    assert play(scene(), []) == []


@pytest.mark.parametrize(
    ("plant", "play", "red"),
    [
        ("dropped_score", quiet, "lost: "),
        ("doubled_score", quiet, "twice: "),
        ("changed_score", quiet, "different: "),
        ("read_uncommitted", quiet, "a score of nothing"),
        ("rows_before_commit", killed_inside_commit, "ahead: "),
        ("offsets_outside_the_transaction", killed_inside_commit, "lost: "),
        ("any_row_replaces_any", a_write_that_comes_late, "rows_different: "),
        ("any_row_of_anybody_replaces_any", zombie_in_mid_flush, "rows_different: "),
    ],
)
def test_a_planted_defect_is_found(scene: MakeScene, plant: str, play: Play, red: str) -> None:
    found = play(scene(), [plant])
    assert [line for line in found if red in line], found


def test_every_plant_is_tried() -> None:
    tried = {mark.args[1][i][0] for mark in test_a_planted_defect_is_found.pytestmark for i in range(len(mark.args[1]))}
    assert tried == set(PLANTS) - {"failing_model", "failing_reasons"}, "those two are in test_tables.py"
