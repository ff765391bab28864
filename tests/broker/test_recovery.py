"""Crashes of workers and of Redis: nothing is lost, nothing is scored twice, and no score differs.

Every test has a Redis of its own, which it may kill.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import redis

from stream.kafka.port import TopicPartition
from stream.stack import RedisServer
from tests.broker.conftest import Deploy
from tests.broker.harness import (
    FAULTY_WORKER,
    SESSION_TIMEOUT_S,
    Deployment,
    WorkerProcess,
    label_of,
    messages_of,
    payments,
    until,
)
from tests.broker.undisturbed import Phase, lasting, undisturbed
from tests.conftest import require

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

TAKEOVER_S = SESSION_TIMEOUT_S + 14.0
"""The session's end, and then no more than it takes to restore on a busy machine."""


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    require(RedisServer)
    server = RedisServer(tmp_path / "own-redis", append_only=True).start()
    yield server
    server.kill()


def scored_by(worker: WorkerProcess) -> float:
    return worker.metric("riskstream_events_total", outcome="scored")


# --- workers that die


def test_a_killed_worker_is_replaced_by_the_other_one(deploy: Deploy) -> None:
    deployment = deploy(partitions=2, batch__max_events=50)
    killed, survivor = deployment.worker("w0"), deployment.worker("w1")
    deployment.started(killed, survivor)
    events = list(payments(3_000, accounts=60))
    deployment.publish(messages_of(events[:1_500]))
    until(lambda: scored_by(killed) > 100, "the worker that will be killed is at work")
    killed.send(signal.SIGKILL)
    assert killed.wait_exit() == -signal.SIGKILL
    deployment.publish(messages_of(events[1_500:]))
    took_s = deployment.wait_done()
    print(f"taken over and caught up after {took_s:.1f} s")
    assert took_s < TAKEOVER_S
    assert len(deployment.check_exactly_once()) == len(events)
    assert survivor.metric("riskstream_identity_gap_events") == 0


@pytest.mark.parametrize("point", ["turn:after_produce", "turn:inside_commit"])
def test_the_open_transaction_of_a_killed_worker_holds_nobody_up(deploy: Deploy, tmp_path: Path, point: str) -> None:
    """The transaction would time out only after a minute."""
    deployment = deploy(partitions=2, kafka__transaction_timeout_ms=60_000)
    halt = tmp_path / "halt"
    halted = deployment.worker("w0", program=(FAULTY_WORKER, point, "halt", halt))
    survivor = deployment.worker("w1")
    deployment.started(halted, survivor)
    events = list(payments(400))
    deployment.publish(messages_of(events[:200]))
    deployment.wait_done()
    assert scored_by(halted) > 0
    assert scored_by(survivor) > 0
    halt.touch()
    deployment.publish(messages_of(events[200:]))
    until(Path(f"{halt}.reached").exists, "the worker is inside its transaction")
    topic = deployment.topics.scores
    until(lambda: deployment.uncommitted_ends(topic) != deployment.ends(topic), "its records are with the broker")
    # What is not committed is not seen.
    assert len(deployment.scores()) < len(events)
    killed_at = time.monotonic()
    halted.send(signal.SIGKILL)
    deployment.wait_done(TAKEOVER_S)
    until(lambda: len(deployment.scores()) == len(events), "every score can be read", TAKEOVER_S, every_s=0.2)
    assert time.monotonic() - killed_at < TAKEOVER_S
    deployment.check_exactly_once()


def test_a_worker_that_dies_in_its_very_first_transaction_holds_nobody_up(deploy: Deploy, tmp_path: Path) -> None:
    """No commit names it: the group has never committed. Its claim does. The transaction would last a minute."""
    deployment = deploy(partitions=2, kafka__transaction_timeout_ms=60_000)
    halt = tmp_path / "halt"
    halt.touch()
    halted = deployment.worker("w0", program=(FAULTY_WORKER, "turn:inside_commit", "halt", halt))
    survivor = deployment.worker("w1")
    deployment.started(halted, survivor)
    deployment.publish(messages_of(payments(200)))
    until(Path(f"{halt}.reached").exists, "the worker is inside its transaction")
    killed_at = time.monotonic()
    halted.send(signal.SIGKILL)
    deployment.wait_done(TAKEOVER_S)
    until(lambda: len(deployment.scores()) == 200, "every score can be read", TAKEOVER_S, every_s=0.2)
    print(f"taken over after {time.monotonic() - killed_at:.1f} s")
    assert time.monotonic() - killed_at < TAKEOVER_S
    assert survivor.logs("ending the transaction of a dead worker")
    deployment.check_exactly_once()


def test_a_worker_restarted_under_its_id_goes_on_at_once(deploy: Deploy, own_redis: RedisServer) -> None:
    """The group keeps its place: nothing waits for the session's end."""
    deployment = deploy(
        partitions=1, redis=own_redis, records__features="all", batch__max_events=40, kafka__session_timeout_ms=60_000
    )
    events = list(payments(1_200, accounts=20))
    worker = deployment.worker("w0")
    deployment.started(worker)
    deployment.publish(messages_of(events[:600]))
    until(lambda: scored_by(worker) > 100, "it is at work")
    worker.send(signal.SIGKILL)
    worker.wait_exit()
    deployment.publish(messages_of(events[600:]))
    again = deployment.worker("w0")
    deployment.started(again)
    deployment.wait_done(30.0)
    assert [line["kind"] for line in again.logs("restored")] in (["replay"], ["clean"])
    check_undisturbed(deployment, [Phase(events)])


def test_a_worker_that_wakes_up_after_losing_its_partitions_does_no_harm(
    deploy: Deploy, own_redis: RedisServer
) -> None:
    deployment = deploy(partitions=1, redis=own_redis, records__features="all", batch__max_events=40)
    events = list(payments(1_500, accounts=20))
    sleeper = deployment.worker("w0")
    deployment.started(sleeper)
    deployment.publish(messages_of(events[:1_000]))
    until(lambda: scored_by(sleeper) > 100, "it is at work")
    sleeper.send(signal.SIGSTOP)
    other = deployment.worker("w1")
    deployment.started(other)
    deployment.wait_done()
    sleeper.send(signal.SIGCONT)
    deployment.publish(messages_of(events[1_000:]))
    deployment.wait_done()
    # It joins again, or it ends for its supervisor to start it anew.
    until(lambda: sleeper.process is None or len(sleeper.logs("assigned")) > 1, "the sleeper has found out")
    assert (sleeper.wait_exit() if sleeper.process is None else sleeper.terminate()) in (0, 10)
    assert other.terminate() == 0
    check_undisturbed(deployment, [Phase(events)])


# --- a Redis that dies


@pytest.mark.parametrize("lost", ["everything flushed", "restarted empty", "restarted with its data"])
def test_a_redis_that_loses_its_data_changes_no_score(deploy: Deploy, own_redis: RedisServer, lost: str) -> None:
    deployment = deploy(partitions=1, redis=own_redis, records__features="all", batch__max_events=40)
    events = list(payments(1_400, accounts=20))
    labels = [label_of(event) for event in events[:600:40]]
    worker = deployment.worker()
    deployment.started(worker)
    deployment.publish(messages_of(events[:600]))
    deployment.wait_done()
    deployment.publish_labels(events[:600:40])
    deployment.wait_done()
    deployment.publish(messages_of(events[600:1_000]))
    until(lambda: scored_by(worker) > 700, "it is at work")
    if lost == "everything flushed":
        with redis.Redis.from_url(own_redis.url) as client:
            client.flushall()
    else:
        own_redis.kill()
        own_redis.append_only = lost == "restarted with its data"
        own_redis.start()
    deployment.publish(messages_of(events[1_000:]))
    deployment.wait_done()
    kinds = [line["kind"] for line in worker.logs("restoring")]
    assert kinds[0] == "clean"
    assert ("rebuild" in kinds) == (lost != "restarted with its data"), kinds
    assert worker.metric("riskstream_identity_gap_events") == 0
    assert worker.terminate() == 0
    check_undisturbed(deployment, [Phase(events[:600], labels), Phase(events[600:])])


def test_a_redis_that_is_away_is_waited_for(deploy: Deploy, own_redis: RedisServer) -> None:
    deployment = deploy(partitions=1, redis=own_redis, records__features="all", redis__timeout_ms=200)
    events = list(payments(900, accounts=300))
    worker = deployment.worker()
    deployment.started(worker)
    deployment.publish(messages_of(events[:300]))
    deployment.wait_done()
    own_redis.stop()
    # Most of these accounts are new, so their rows are asked for.
    deployment.publish(messages_of(events[300:]))
    until(lambda: worker.get("/readyz")[0] == 503, "it says that it is not ready")
    assert "redis" in worker.get("/readyz")[1]
    stood = deployment.committed()
    time.sleep(5.0)
    assert deployment.committed() == stood
    assert not deployment.is_done()
    assert worker.get("/livez")[0] == 200
    own_redis.start()
    deployment.wait_done()
    until(worker.is_ready, "it is ready again")
    assert worker.metric("riskstream_redis_errors_total", kind="unavailable") > 0
    assert worker.terminate() == 0
    check_undisturbed(deployment, [Phase(events)])


# --- an operator's hand


def test_offsets_moved_back_behind_the_state_are_refused(deploy: Deploy, own_redis: RedisServer) -> None:
    deployment = deploy(partitions=1, redis=own_redis)
    worker = deployment.worker()
    deployment.started(worker)
    deployment.publish(messages_of(payments(100)))
    deployment.wait_done()
    assert worker.terminate() == 0
    deployment.move_offsets({TopicPartition(deployment.topics.transactions, 0): 40})
    refused = deployment.worker()
    refused.launch()
    assert refused.wait_exit() == 13
    (error,) = [line for line in refused.logs("stopped") if line["level"] == "error"]
    assert "redis.namespace" in error["error"]
    assert "riskstream state rebuild" in error["error"]
    assert len(deployment.scores()) == 100
    # The first way out: a new state. The events are scored again, as the operator asked.
    again = deployment.worker(redis__namespace="another")
    deployment.started(again)
    deployment.wait_done()
    assert len(deployment.scores()) == 160


def check_undisturbed(deployment: Deployment, phases: Sequence[Phase]) -> None:
    """Every event has one score, and it is the one of a run that nothing disturbed, features and all."""
    expected = undisturbed(deployment, phases)
    scores = deployment.check_exactly_once()
    assert len(scores) == len(expected)
    for score in scores:
        assert lasting(score.content) == lasting(expected[score.origin])
        assert score.content["features"]
