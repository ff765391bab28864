"""The audit over a real log: it holds for a real worker's outputs, and finds what was added to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest

from stream.simulate.simulation import Simulation
from tests.broker.conftest import Deploy, after_history
from tests.broker.harness import Deployment, Message, messages_of, payments

pytestmark = [pytest.mark.kafka, pytest.mark.redis]


class Audited(NamedTuple):
    code: int
    document: dict[str, Any]
    err: str


def audit(deployment: Deployment, *words: str) -> Audited:
    """`riskstream audit --json` as a process of its own."""
    command = [sys.executable, "-m", "stream.cli", "audit", "--json", *words]
    environment = os.environ | deployment.environment()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return Audited(done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr)


def mixed(simulation: Simulation) -> tuple[list[Message], int, int]:
    """Messages, and how many of them are duplicates and malformed."""
    events = after_history(simulation, 600).events()
    good = messages_of(events)
    repeats = [good[place] for place in range(50, 600, 60)]
    bad = [Message(value, b"a1") for value in (b"{", b"\xff", None, b"[]", b'{"event_id": "x"}')]
    return [*good[:300], *bad, *good[300:], *repeats], len(repeats), len(bad)


def test_a_real_run_holds_and_its_scores_can_be_taken_away(
    deploy: Deploy, bundle: Path, simulation: Simulation, tmp_path: Path
) -> None:
    deployment = deploy(partitions=4, scoring__bundle=bundle)
    workers = [deployment.worker("w0"), deployment.worker("w1")]
    deployment.started(*workers)
    messages, repeats, bad = mixed(simulation)
    deployment.publish(messages)
    deployment.publish([Message(b"no label", b"a1")], deployment.topics.labels)
    deployment.wait_done()

    out = tmp_path / "scores.parquet"
    running = audit(deployment, "--out", str(out))
    assert running.code == 0, running
    document = running.document
    assert (document["events"], document["duplicates"], document["dead"]) == (len(messages), repeats, bad)
    assert document["scored"] == 600
    assert document["labels_dead"] == 1
    assert document["alerts"] == len(deployment.alerts())
    assert document["identity_holds"]
    assert document["exactly_once"]

    by_origin = {(row["partition"], row["offset"]): row for row in pq.read_table(out).to_pylist()}
    scores = deployment.scores()
    assert len(by_origin) == len(scores)
    for score in scores:
        row = by_origin[score.origin[1:]]
        assert row["probability"] == score.content["probability"]
        assert row["component_sequence"] == score.content["components"]["sequence"]
        assert (row["event_id"], row["decision"]) == (score.content["event_id"], score.content["decision"])


def test_what_was_added_to_the_outputs_is_found(deploy: Deploy, bundle: Path, simulation: Simulation) -> None:
    deployment = deploy(partitions=2, scoring__bundle=bundle)
    worker = deployment.worker()
    deployment.started(worker)
    deployment.publish(messages_of(after_history(simulation, 300).events()))
    deployment.wait_done()
    assert worker.terminate() == 0
    assert audit(deployment).code == 0

    score = deployment.scores()[7]
    deployment.publish([Message(score.record.value, score.record.key)], deployment.topics.scores)
    twice = audit(deployment)
    assert twice.code == 1
    assert set(twice.document["problems"]) == {"scored_twice"}
    assert twice.document["identity_holds"]
    assert not twice.document["exactly_once"]

    foreign = score.content | {"origin": score.content["origin"] | {"offset": 10**6}}
    deployment.publish([Message(json.dumps(foreign).encode(), score.record.key)], deployment.topics.alerts)
    assert set(audit(deployment).document["problems"]) == {"scored_twice", "unknown_origin"}


def test_what_no_worker_has_done_is_pending(deploy: Deploy) -> None:
    deployment = deploy(partitions=2)
    worker = deployment.worker()
    deployment.started(worker)
    deployment.publish(messages_of(payments(200)))
    deployment.wait_done()
    assert worker.terminate() == 0
    deployment.publish(messages_of(payments(50, seed=1)))
    found = audit(deployment)
    assert found.code == 1
    assert (found.document["scored"], found.document["pending"], found.document["lost"]) == (200, 50, 0)
    assert found.document["problems"] == {}
