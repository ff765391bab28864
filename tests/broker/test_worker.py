"""One worker as a process, from its start to its end: what it publishes, says and refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import redis
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from stream import app
from stream.clock import SystemClock
from stream.events.records import Alert, RiskScore
from stream.history.batch import UNKNOWN, HistoryBatch
from stream.kafka.headers import SOURCE_MS, TRACEPARENT
from stream.kafka.port import TopicPartition
from stream.metrics import Metrics
from stream.scoring.loading import load_scorer
from stream.simulate.simulation import Simulation
from stream.stack import RedisServer
from stream.state.store import Checkpoint
from stream.topics import create_topics, plan_topics
from tests.broker.conftest import Deploy, after_history
from tests.broker.harness import Deployment, WorkerProcess, message_of, messages_of, payments, until
from tests.conftest import require

pytestmark = [pytest.mark.kafka, pytest.mark.redis]


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server whose settings a test may change."""
    require(RedisServer)
    server = RedisServer(tmp_path / "own-redis").start()
    yield server
    server.kill()


# --- what is published


def test_every_event_has_a_score_and_every_suspicious_one_an_alert(
    deploy: Deploy, bundle: Path, simulation: Simulation
) -> None:
    deployment = deploy(partitions=1)
    batch = after_history(simulation, 700)
    headers = [[(TRACEPARENT, f"00-{n:032x}-{n:016x}-01".encode()), (SOURCE_MS, b"1767225600000"), ("other", b"x")]
               for n in range(1, len(batch) + 1)]  # fmt: skip
    events = [event | {"campaign": {"id": n}} for n, event in enumerate(batch.events())]
    worker = deployment.worker(scoring__bundle=bundle)
    deployment.started(worker)
    deployment.publish(map(message_of, events, headers))
    deployment.wait_done()

    scores = deployment.check_exactly_once()
    assert [score.origin[2] for score in scores] == list(range(len(events)))
    for score, event, sent in zip(scores, events, headers, strict=True):
        record = RiskScore.model_validate(score.content)
        assert score.record.key == event["account_id"].encode()
        assert list(score.record.headers) == sent[:2]
        assert {name: score.content[name] for name in event if name in score.content} == {
            name: value for name, value in event.items() if name in score.content
        }
        assert record.passthrough == {"campaign": event["campaign"]}
        assert record.model == "tiny@7"
        assert record.spec_id == deployment.domain.spec_id
        assert record.probability is not None
        assert record.score is not None
        assert set(record.components) == {"sequence", "aggregate"}
        assert datetime.fromisoformat(record.scored_at).tzinfo is not None
    check_offline(deployment, bundle, batch, [score.content["probability"] for score in scores])

    suspicious = {score.origin: score for score in scores if score.content["decision"] != "approve"}
    alerts = deployment.alerts()
    assert 5 < len(alerts) < len(events) // 2
    assert [alert.origin for alert in alerts] == list(suspicious)
    for alert in alerts:
        shown = Alert.model_validate(alert.content)
        score = suspicious[alert.origin]
        assert (shown.event_id, shown.score) == (score.content["event_id"], score.content["score"])
        assert list(alert.record.headers) == list(score.record.headers)
        assert shown.reasons, "an alert without a reason"
        # The channel is a word, not a number: its reason has no values. Nor has one whose values are all missing.
        assert all(
            reason.values or reason.code == "CHANNEL" or reason.text.endswith("all its values are missing")
            for reason in shown.reasons
        ), shown.reasons
        assert shown.reasons[0].contribution == max(reason.contribution for reason in shown.reasons)
    assert deployment.dead_letters() == []
    assert worker.metric("riskstream_alerts_total") == len(alerts)
    assert worker.metric("riskstream_model_info", role="champion", name="tiny", version="7") == 1
    assert worker.terminate() == 0


def check_offline(deployment: Deployment, bundle: Path, batch: HistoryBatch, probabilities: list[float]) -> None:
    """The scores are those of `riskstream score` over the same events."""
    scorer = load_scorer(bundle, deployment.domain)
    offline = app.OfflineScorer(deployment.settings, deployment.domain, scorer, SystemClock())
    unlabelled = dataclasses.replace(batch, fraud=np.full_like(batch.fraud, UNKNOWN))
    expected = [record["probability"] for records in offline.records([unlabelled]) for record in records]
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-6)


def test_the_end_of_a_worker_leaves_nothing_open(deploy: Deploy) -> None:
    deployment = deploy(partitions=2, state__flush_interval_ms=60_000)
    events = list(payments(500))
    worker = deployment.worker()
    deployment.started(worker)
    deployment.publish(messages_of(events))
    until(lambda: worker.metric("riskstream_events_in_total") > 0, "it is at work")
    assert worker.terminate() == 0
    # All rows are in Redis up to the committed offsets, and the group is empty.
    committed = {tp: found.offset for tp, found in deployment.committed().items()}
    for number in range(2):
        transactions, labels = (
            TopicPartition(t, number) for t in (deployment.topics.transactions, deployment.topics.labels)
        )
        expected = Checkpoint(committed[transactions], committed[labels])
        head = deployment.store.load_head(number)
        assert head is not None
        assert head.checkpoint == expected
    assert sum(committed.values()) == len(deployment.scores())
    assert deployment.members() == set()
    assert worker.logs()[-1] | {"message": "stopped", "exit_code": 0} == worker.logs()[-1]
    # The next one finds all clean, and does the rest.
    following = deployment.worker("w1")
    deployment.started(following)
    deployment.wait_done()
    assert {line["kind"] for line in following.logs("restoring")} == {"clean"}
    assert len(deployment.check_exactly_once()) == len(events)


# --- seen from outside


def test_metrics_and_logs(deploy: Deploy, bundle: Path) -> None:
    deployment = deploy(partitions=2)
    worker = deployment.worker(scoring__bundle=bundle)
    deployment.started(worker)
    deployment.publish(messages_of(payments(200)))
    deployment.wait_done()
    until(lambda: worker.metric("riskstream_checkpoint_lag_events") == 0, "the rows are flushed")
    status, text = worker.get("/metrics")
    assert status == 200
    found = {family.name: family for family in text_string_to_metric_families(text)}
    declared = generate_latest(Metrics(CollectorRegistry()).registry).decode()
    names = {family.name for family in text_string_to_metric_families(declared)}
    assert len(names) > 25
    assert names <= set(found)
    assert all(len(family.documentation) > 20 for family in found.values())
    assert worker.metric("riskstream_events_total", outcome="scored") == 200
    assert worker.metric("riskstream_event_latency_seconds_count") == 200
    assert worker.metric("riskstream_score_count") == 200
    assert worker.metric("riskstream_consumer_lag_events") == 0
    assert worker.metric("riskstream_restoring") == 0
    assert worker.metric("riskstream_commits_total") >= 1
    assert worker.metric("riskstream_redis_rows_total", operation="written") > 0
    assert all(
        worker.metric("riskstream_stage_seconds_count", stage=stage) > 0 for stage in ("score", "commit", "flush")
    )
    # Every line of the log is a JSON object that names the worker.
    lines = worker.output().splitlines()
    assert lines
    assert all(json.loads(line)["worker"] == "w0" for line in lines)
    assert worker.get("/nothing")[0] == 404


def test_readiness(deploy: Deploy, own_redis: RedisServer) -> None:
    deployment = deploy(partitions=1, redis=own_redis, redis__timeout_ms=200)
    deployment.publish(messages_of(payments(50)))
    own_redis.stop()
    first, second = deployment.worker("w0"), deployment.worker("w1")
    deployment.started(first, ready=False)
    until(lambda: "restoring 1 of 1" in first.get("/readyz")[1], "it waits for Redis")
    assert first.get("/readyz")[0] == 503
    assert first.get("/livez")[0] == 200
    assert deployment.scores() == []
    own_redis.start()
    until(first.is_ready, "it runs once Redis is back")
    deployment.wait_done()
    # There is one partition only.
    deployment.started(second, ready=False)
    until(lambda: deployment.members() == {"w0", "w1"}, "both are members")
    until(lambda: first.is_ready() != second.is_ready(), "one of them has the partition")
    idle = second if first.is_ready() else first
    status, body = idle.get("/readyz")
    assert (status, json.loads(body)["assigned"]) == (503, 0)
    assert idle.get("/livez")[0] == 200
    assert len(deployment.check_exactly_once()) == 50


# --- what is refused


def refused(worker: WorkerProcess, code: int, *words: str) -> None:
    """It ends by itself with this code, and one error that holds these words."""
    worker.launch()
    assert worker.wait_exit() == code, worker.output()
    (complaint,) = [line for line in worker.output().splitlines() if line.startswith("error:")]
    text = worker.output()[worker.output().index(complaint) :]
    assert all(word in text for word in words), text
    assert "Traceback" not in worker.output()


def test_wrong_settings(deploy: Deploy) -> None:
    deployment = deploy(topics=False)
    refused(deployment.worker(batch__max_events=0), 2, "batch.max_events", "RISKSTREAM_BATCH__MAX_EVENTS", "1 to 10000")
    refused(deployment.worker(domain="stream.domains.payments:NOTHING"), 2, "domain", "package.module:NAME")


def test_topics_that_are_missing_or_differ(deploy: Deploy) -> None:
    deployment = deploy(topics=False)
    refused(deployment.worker(), 12, deployment.topics.transactions, "riskstream topics create")
    plans = plan_topics(deployment.settings, partitions=2)
    plans[1] = dataclasses.replace(plans[1], partitions=3)
    create_topics(deployment.admin, plans)
    refused(deployment.worker(), 12, deployment.topics.labels, "2 partitions", "same number")


def test_a_redis_that_may_lose_rows_or_refuses_the_password(deploy: Deploy, own_redis: RedisServer) -> None:
    deployment = deploy(redis=own_redis)
    with redis.Redis.from_url(own_redis.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        refused(deployment.worker(), 2, "allkeys-lru", "noeviction")
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("requirepass", "correct-horse")
    wrong = own_redis.url.replace("redis://", "redis://:battery-staple@")
    worker = deployment.worker(redis__url=wrong)
    refused(worker, 17, "redis.url")
    assert "battery-staple" not in worker.output()


def test_a_bundle_with_one_changed_byte(deploy: Deploy, bundle: Path, tmp_path: Path) -> None:
    deployment = deploy()
    changed = tmp_path / "changed"
    shutil.copytree(bundle, changed)
    content = bytearray((changed / "model.ts").read_bytes())
    content[len(content) // 2] ^= 1
    (changed / "model.ts").write_bytes(content)
    refused(deployment.worker(scoring__bundle=changed), 16, "model.ts")


def test_a_kafka_that_does_not_answer(deploy: Deploy) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{closed.getsockname()[1]}"
        worker = deploy().worker(kafka__bootstrap_servers=nowhere, kafka__request_timeout_ms=2_000)
        refused(worker, 1, "Kafka")


def test_the_older_of_two_workers_with_one_id_ends(deploy: Deploy) -> None:
    deployment = deploy(partitions=2)
    older, newer = deployment.worker("w0"), deployment.worker("w0")
    events = list(payments(600))
    deployment.started(older)
    deployment.publish(messages_of(events[:300]))
    deployment.started(newer, ready=False)
    deployment.publish(messages_of(events[300:]))
    assert older.wait_exit() == 10
    assert "kafka.worker_id" in older.output()
    deployment.wait_done()
    until(newer.is_ready, "the newer worker is ready")
    assert len(deployment.check_exactly_once()) == len(events)
