"""Rows of the restore table and of the failure table (docs/guarantees.md) on the real servers."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from stream.events.records import Flag
from stream.kafka.port import TopicPartition
from stream.stack import RedisServer
from tests.broker.harness import until
from tests.conftest import require
from tests.crash.traffic import Traffic
from tests.soak.conftest import MakeScene
from tests.soak.scene import Scene
from tests.soak.workers import ForkedWorker

pytestmark = [pytest.mark.kafka, pytest.mark.redis]
NEVER_MS = 10**8


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    require(RedisServer)
    server = RedisServer(tmp_path / "own-redis", append_only=True).start()
    yield server
    server.kill()


def kinds(worker: ForkedWorker) -> set[str]:
    """How its partitions were restored."""
    return {line["kind"] for line in worker.logs("restored")}


def flagged(scene: Scene, flag: str) -> int:
    return sum(flag in score.content["flags"] for score in scene.deployment.scores())


def counted(worker: ForkedWorker, flag: str) -> float:
    return worker.metric("riskstream_flags_total", flag=flag)


def check_flags(scene: Scene, worker: ForkedWorker) -> Counter[str]:
    """Of one worker that has made all scores: whatever the records say has been counted. Returns it."""
    found = Counter(flag for score in scene.deployment.scores() for flag in score.content["flags"])
    until(lambda: all(counted(worker, flag) == found[flag] for flag in Flag), f"the counters say {found}", 10.0)
    return found


def complaints_but(scene: Scene, flag: str) -> list[str]:
    """What was flagged may differ from an undisturbed run; nothing is lost or twice, and the rows are the same."""
    events = {score.origin[1:] for score in scene.deployment.scores() if flag in score.content["flags"]}
    return [line for line in scene.complaints() if not any(f", {p}, {o})" in line for p, o in events)]


def forget_state(scene: Scene) -> None:
    """What FLUSHALL does to this scene's keys on a server that others use too."""
    with redis.Redis.from_url(scene.deployment.settings.redis.url.get_secret_value()) as client:
        names = [
            name for name in client.scan_iter(count=2_000) if scene.deployment.settings.kafka.group.encode() in name
        ]
        assert names
        client.delete(*names)


def done(scene: Scene, events: int = 80, worker_id: str = "w0", **settings: object) -> ForkedWorker:
    """A worker that has done so many more events."""
    worker = scene.worker(worker_id, **settings)
    scene.publish(events)
    scene.deployment.wait_done()
    return worker


# --- the restore table


def test_w_is_c_after_a_clean_stop(scene: MakeScene) -> None:
    """The first start of all, and a start after a clean stop: nothing to replay."""
    stage = scene()
    first = done(stage)
    assert {Flag.LATE, Flag.NO_RATE} == set(check_flags(stage, first)), "of a run that nothing disturbs"
    assert first.terminate() == 0
    second = done(stage)
    assert kinds(first) == kinds(second) == {"clean"}
    assert second.terminate() == 0
    assert stage.complaints() == []


def test_w_below_c_is_replayed(scene: MakeScene) -> None:
    """It commits and dies before it has flushed anything since its start."""
    stage = scene(state__flush_interval_ms=60_000)
    worker = done(stage, 60)
    worker.order("turn:after_commit")
    stage.publish(60)
    assert worker.wait_exit() == -signal.SIGKILL
    successor = done(stage, 60)
    assert "replay" in kinds(successor)
    assert successor.terminate() == 0
    assert stage.complaints() == []


def test_w_missing_is_rebuilt(scene: MakeScene) -> None:
    """The log is whole: scores and rows are those of an undisturbed run, labels included."""
    stage = scene()
    assert done(stage, 120).terminate() == 0
    forget_state(stage)
    successor = done(stage)
    assert kinds(successor) == {"rebuild"}
    assert successor.terminate() == 0
    assert flagged(stage, "cold") == 0
    assert stage.complaints() == []


def test_w_missing_may_start_cold(scene: MakeScene) -> None:
    """Every score says so, and they are counted."""
    stage = scene(state__on_missing_checkpoint="cold")
    assert done(stage).terminate() == 0
    before = len(stage.deployment.scores())
    forget_state(stage)
    successor = done(stage)
    assert kinds(successor) == {"cold"}
    assert flagged(stage, "cold") == len(stage.deployment.scores()) - before == counted(successor, "cold") > 0


def test_a_rebuild_from_what_retention_has_left_says_so(scene: MakeScene) -> None:
    """W missing, and part of the log with it: nothing more is to be had, so it is not refused."""
    stage = scene()
    assert done(stage).terminate() == 0
    before = len(stage.deployment.scores())
    forget_state(stage)
    stage.deployment.delete_before(dict.fromkeys(stage.deployment.ends(stage.deployment.topics.transactions), 5))
    successor = done(stage)
    assert kinds(successor) == {"rebuild"}
    assert flagged(stage, "cold") == len(stage.deployment.scores()) - before == counted(successor, "cold") > 0


@pytest.mark.parametrize("what", ["the replay", "events that were never scored"])
def test_a_log_that_was_cut_is_refused_or_gone_on_with(scene: MakeScene, what: str) -> None:
    stage = scene(state__flush_interval_ms=NEVER_MS)
    worker = done(stage, 60)
    worker.send(signal.SIGKILL)
    worker.wait_exit()
    where = TopicPartition(stage.deployment.topics.transactions, 0)
    if what != "the replay":
        stage.publish(60)
    end = stage.deployment.ends(where.topic)[where]
    committed = stage.deployment.committed()[where].offset
    stage.deployment.delete_before({where: committed // 2 if what == "the replay" else (committed + end) // 2})
    refused = stage.worker("w0")
    assert refused.wait_exit() == 14
    (error,) = [line["error"] for line in refused.logs("stopped")]
    assert "state.on_truncated_log=continue" in error
    going_on = done(stage, state__on_truncated_log="continue")
    assert flagged(stage, "cold") == counted(going_on, "cold") > 0


def test_w_above_c_is_refused_and_a_rebuild_is_the_way_out(scene: MakeScene) -> None:
    """The other way out, another namespace: broker/test_recovery.py."""
    stage = scene()
    assert done(stage).terminate() == 0
    where = TopicPartition(stage.deployment.topics.transactions, 0)
    before = len(stage.deployment.scores())
    stage.deployment.move_offsets({where: stage.deployment.committed()[where].offset // 2})
    refused = stage.worker("w0")
    assert refused.wait_exit() == 13
    assert "riskstream state rebuild" in refused.output()
    assert len(stage.deployment.scores()) == before
    until(lambda: not stage.deployment.members(), "the refused worker has left")
    # What the command does.
    for number in range(stage.partitions):
        store = stage.deployment.store
        store.clear(number, store.claim(number, "riskstream-state-rebuild", 0))
    again = done(stage)
    assert "rebuild" in kinds(again)
    assert len(stage.deployment.scores()) > before


# --- the failure table


def test_redis_away_costs_nothing_while_all_rows_are_at_hand(scene: MakeScene, own_redis: RedisServer) -> None:
    stage = scene(redis=own_redis, redis__timeout_ms=200)
    worker = done(stage, 60)
    stage.everybody()
    until(stage.flushed, "every row is in memory, and in Redis")
    own_redis.stop()
    stage.everybody()
    stage.deployment.wait_done()
    until(lambda: bool(worker.logs("flush failed; rows wait in memory")), "the flush waits")
    own_redis.start()
    until(stage.flushed, "and is made up for")
    assert "degraded" not in check_flags(stage, worker)
    assert worker.terminate() == 0
    assert stage.complaints() == []


def test_redis_away_may_mean_scores_without_history(scene: MakeScene, own_redis: RedisServer) -> None:
    stage = scene(redis=own_redis, state__on_store_unavailable="degrade", redis__timeout_ms=200)
    worker = done(stage, 60)
    own_redis.stop()
    # Of accounts that are in memory nothing is asked: these have not been seen yet.
    stage.traffic = Traffic(6, stage.partitions, published_ms=stage.traffic._published_ms, accounts_each=40)
    stage.publish(120)
    stage.deployment.wait_done()
    degraded = check_flags(stage, worker)["degraded"]
    assert degraded > 0
    own_redis.start()
    until(worker.is_ready, "it has its history again")
    stage.publish(60)
    stage.deployment.wait_done()
    assert flagged(stage, "degraded") < degraded + 60
    assert worker.terminate() == 0
    assert complaints_but(stage, "degraded") == []


@pytest.mark.parametrize("policy", ["pause", "degrade"])
def test_redis_away_when_a_worker_starts(scene: MakeScene, own_redis: RedisServer, policy: str) -> None:
    stage = scene(redis=own_redis, state__on_store_unavailable=policy, redis__timeout_ms=200)
    assert done(stage, 60).terminate() == 0
    before = len(stage.deployment.scores())
    own_redis.stop()
    worker = stage.worker("w0")
    stage.publish(40)
    until(lambda: bool(worker.logs("restore waits")), "it has noticed")
    if policy == "degrade":
        stage.deployment.wait_done()
        assert flagged(stage, "degraded") == counted(worker, "degraded") == len(stage.deployment.scores()) - before > 0
    else:
        assert worker.get("/readyz")[0] == 503
        assert len(stage.deployment.scores()) == before
    own_redis.start()
    until(worker.is_ready, "it has its history")
    stage.publish(40)
    stage.deployment.wait_done()
    assert worker.terminate() == 0
    assert (flagged(stage, "degraded") == 0) == (policy == "pause")
    assert complaints_but(stage, "degraded") == []


def test_a_model_that_fails_leaves_the_rules(scene: MakeScene) -> None:
    """Champion alone: no model is left, every score is flagged. (The model before it: broker/test_models.py.)"""
    stage = scene()
    worker = stage.worker("w0", plants=["failing_model"])
    stage.publish(80)
    stage.deployment.wait_done()
    scores = stage.deployment.scores()
    assert check_flags(stage, worker)["rules_only"] == len(scores) > 0
    assert all(score.content["probability"] is None for score in scores)
    assert worker.metric("riskstream_model_failures_total") > 0
    assert worker.terminate() == 0


def test_reasons_that_fail_hold_no_alert_up(scene: MakeScene) -> None:
    stage = scene()
    worker = stage.worker("w0", plants=["failing_reasons"])
    stage.publish(200)
    stage.deployment.wait_done()
    alerts = stage.deployment.alerts()
    assert alerts
    assert all(alert.content["reasons"] == [] for alert in alerts)
    assert worker.terminate() == 0
    assert stage.complaints() == []
