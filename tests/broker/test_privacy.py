"""Whose payment it was stays between Kafka topics: never in a log, a metric, an error or the name of a Redis key."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from stream.stack import RedisServer
from tests.broker.conftest import Deploy
from tests.broker.harness import (
    FAULTY_WORKER,
    Deployment,
    Message,
    WorkerProcess,
    label_of,
    message_of,
    messages_of,
    payments,
    until,
)
from tests.conftest import require

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

MARK = "zqx7"
IPS = ("198.51.100.77", "2001:db8:7777::1")
CARD = "4929000000006"


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    require(RedisServer)
    server = RedisServer(tmp_path / "own-redis").start()
    yield server
    server.kill()


def marked_payments(count: int, *, accounts: int = 30) -> list[dict[str, Any]]:
    """Payments whose every identifier can be found again."""
    named = ("event_id", "account_id", "merchant_id", "device_id")
    events = []
    for number, event in enumerate(payments(count, seed=5, accounts=accounts)):
        marked = event | {name: f"{MARK}-{name}-{event[name]}" for name in named}
        marked |= {"ip": IPS[number % 2], "card_id": CARD, "terminal_id": f"{MARK}-terminal-{number % 5}"}
        events.append(marked | {f"{MARK}-own-field": f"{MARK}-value", "attributes": {f"{MARK}-key": f"{MARK}-text"}})
    return events


def bad_messages(event: dict[str, Any]) -> list[Message]:
    """The event, spoilt so that every kind of reason must speak of it."""
    text = json.dumps(event)
    changed: list[dict[str, Any]] = [
        {"amount": f"{MARK}-amount"},
        {"amount": -1},
        {"currency": MARK.upper()},
        {"timestamp": f"{MARK}-yesterday"},
        {"timestamp": "2099-01-01T00:00:00Z"},
        {"ip": f"{MARK}-address"},
        {"mcc": MARK},
        {"account_id": f"{MARK}\n"},
        {"event_id": f"{MARK}" * 40},
        {"account_id": [f"{MARK}-list"]},
        {"attributes": {f"{MARK}-key": {"deep": MARK}}},
        {"attributes": {MARK: "x" * 100_000}},
        {f"{MARK}-number": 1e999},
    ]
    values = [json.dumps({**event, **change}).encode() for change in changed]
    values += [
        text[:-10].encode(),
        f"{MARK} says hello".encode(),
        json.dumps(f"{MARK}-a-text").encode(),
        text.encode()[:-1] + f',"{MARK}-own-field":1}}'.encode(),
        text.encode()[:-1] + f',"note":"{MARK}'.encode() + b'\xff"}',
        f'{{"{MARK}":'.encode() * 50,
        json.dumps({f"{MARK}-{CARD}": CARD}).encode(),
    ]
    key = event["account_id"].encode()
    return [Message(value, key, [("traceparent", MARK.encode())]) for value in values] + [Message(None, key)]


def check_silent(*texts: str) -> None:
    for text in texts:
        assert text
        for secret in (MARK, MARK.upper(), CARD, *IPS):
            place = text.find(secret)
            assert place < 0, text[max(0, place - 300) : place + 100]


def check_keys(deployment: Deployment) -> None:
    """Redis holds hashes of identities, in names and in rows."""
    with redis.Redis.from_url(deployment.settings.redis.url.get_secret_value()) as client:
        names = list(client.scan_iter(count=1_000))
        assert len(names) > 50
        values = [client.get(name) if client.type(name) == b"string" else client.hgetall(name) for name in names]
    check_silent(repr(names), repr(values))


def run_over(worker: WorkerProcess, deployment: Deployment, messages: list[Message]) -> None:
    deployment.started(worker)
    deployment.publish(messages)
    deployment.wait_done()


def test_good_and_bad_traffic(deploy: Deploy, own_redis: RedisServer, bundle: Path, tmp_path: Path) -> None:
    """With every event an alert, and every line of the log that can be asked for."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        f"""
version: privacy
rules:
  - {{name: everything, when: [{{column: amount, op: ">=", value: 0}}], decision: review, reason: all of them}}
lists:
  - {{name: blocked, kind: block, field: account_id, values: ["{MARK}-account_id-a1"], reason: known}}
"""
    )
    deployment = deploy(partitions=2, redis=own_redis, log__level="debug", records__features="all")
    worker = deployment.worker(scoring__bundle=bundle, scoring__policy=policy)
    events = marked_payments(300)
    messages = [*messages_of(events[:200]), *bad_messages(events[0]), *messages_of([*events[150:], events[0]])]
    run_over(worker, deployment, messages)
    labels = [message_of(label_of(event)) for event in events[:20]] + bad_messages(label_of(events[1]))
    deployment.publish(labels, deployment.topics.labels)
    deployment.wait_done()
    assert len(deployment.alerts()) == len(events)
    # Three of the spoilt labels are wrong only where a label declares nothing.
    letters = deployment.dead_letters()
    assert len(letters) == 2 * len(bad_messages(events[0])) - 3
    check_silent(*(letter.content["reason"] for letter in letters))
    metrics = worker.get("/metrics")[1]
    assert worker.metric("riskstream_events_total", outcome="duplicate") == 51
    assert worker.metric("riskstream_labels_total", outcome="folded") == 20
    until(lambda: worker.metric("riskstream_checkpoint_lag_events") == 0, "the rows are in Redis")
    check_keys(deployment)
    # Redis goes and comes back empty while it works; then it dies and another one starts over.
    own_redis.kill()
    deployment.publish(messages_of(marked_payments(400)[300:]))
    until(lambda: worker.metric("riskstream_redis_errors_total", kind="unavailable") > 0, "it misses Redis")
    own_redis.start()
    deployment.wait_done()
    until(lambda: len(worker.logs("partition starts over")) > 0, "it sees that Redis came back empty")
    worker.send(signal.SIGKILL)
    worker.wait_exit()
    again = deployment.worker()
    run_over(again, deployment, messages_of(marked_payments(420)[400:]))
    assert again.terminate() == 0
    check_silent(worker.output(), again.output(), metrics)


def test_an_unexpected_error(deploy: Deploy, tmp_path: Path) -> None:
    """Its text may hold anything; kind and place are what the log gets."""
    deployment = deploy(partitions=1)
    failing = tmp_path / "failing"
    worker = deployment.worker(program=(FAULTY_WORKER, "turn:after_fold", "fail", failing))
    events = marked_payments(40)
    run_over(worker, deployment, messages_of(events[:20]))
    failing.write_text(f"cannot score {events[20]}")
    deployment.publish(messages_of(events[20:]))
    assert worker.wait_exit() == 1
    assert "ValueError" in worker.output()
    check_silent(worker.output())


def test_an_arena_that_is_too_small(deploy: Deploy) -> None:
    deployment = deploy(partitions=1, state__arena_accounts=64)
    deployment.publish(messages_of(marked_payments(500, accounts=400)))
    worker = deployment.worker()
    worker.launch()
    assert worker.wait_exit() == 2
    assert "state.arena_accounts" in worker.output()
    check_silent(worker.output())
