"""Upgrades under traffic: two versions side by side, a new spec_id, and partitions that somebody added."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stream.config import load_settings
from tests.broker.conftest import Deploy
from tests.broker.domain_two import DOMAIN as DOMAIN_TWO
from tests.broker.harness import Deployment, Output, WorkerProcess, label_of, message_of, messages_of, payments, until
from tests.broker.undisturbed import Phase, undisturbed

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

ROOT = Path(__file__).parents[2]
FROM = os.environ.get("UPGRADE_FROM", "HEAD~1")
"""The version to upgrade from, as git names it."""


@pytest.fixture(scope="session")
def old_program(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """What runs the command line of the version before: its tree, unpacked, before everything else on the path."""
    folder = tmp_path_factory.mktemp("old")
    archive = folder / "tree.tar"
    command = ["git", "archive", "--output", archive, FROM, "stream", "models"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"git must know {FROM} (a clone of depth 2 or more): {done.stderr}"
    with tarfile.open(archive) as tree:
        tree.extractall(folder, filter="data")
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r}); import stream; "
        f"assert stream.__file__.startswith({str(folder)!r}); from stream.cli.root import main; main()"
    )
    return "-c", code


@contextmanager
def traffic(deployment: Deployment, *, seed: int, per_second: int = 60) -> Iterator[list[dict[str, Any]]]:
    """Publishes events at a steady rate while the block runs; gives the list of what has been published."""
    done = threading.Event()
    producer = deployment.client.plain_producer()
    published: list[dict[str, Any]] = []

    def publish() -> None:
        source = payments(1_000_000, seed=seed, accounts=80)
        while not done.wait(0.1):
            for event in itertools.islice(source, per_second // 10):
                message = message_of(event)
                producer.produce(deployment.topics.transactions, message.value, key=message.key)
                published.append(event)
            producer.flush()

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield published
    finally:
        done.set()
        thread.join()
        producer.close()


def scored_by(worker: WorkerProcess) -> float:
    return worker.metric("riskstream_events_total", outcome="scored")


def wait_scored(*workers: WorkerProcess, more: int = 40) -> None:
    """Until each of the workers, side by side, has scored so many more events."""
    before = [scored_by(worker) for worker in workers]
    until(
        lambda: all(scored_by(w) >= b + more for w, b in zip(workers, before, strict=True)),
        "the workers score side by side",
    )


def spec_of(worker: WorkerProcess) -> str:
    (started,) = worker.logs("started")
    return str(started["spec_id"])


def known(scores: list[Output], spec_id: str) -> dict[tuple[str, int, int], Mapping[str, Any]]:
    """Origin -> features, of the scores that were made with this spec."""
    return {score.origin: score.content["features"] for score in scores if score.content["spec_id"] == spec_id}


@pytest.mark.slow
def test_two_versions_side_by_side(deploy: Deploy, old_program: tuple[str, str]) -> None:
    """Old workers, then old and new, a crash in between, new ones, and one step back; traffic never stops."""
    deployment = deploy(records__features="all", state__entity_scope="own", batch__max_events=50)
    old = [deployment.worker(name, old_program) for name in ("w0", "w1")]
    new = [deployment.worker(name) for name in ("w0", "w1")]
    back = deployment.worker("w1", old_program)
    with traffic(deployment, seed=0) as events:
        deployment.started(*old)
        wait_scored(*old)
        assert old[1].terminate() == 0
        deployment.started(new[1])
        wait_scored(old[0], new[1])
        old[0].send(signal.SIGKILL)
        old[0].wait_exit()
        deployment.started(new[0])
        wait_scored(*new)
        assert new[1].terminate() == 0
        deployment.started(back)
        wait_scored(new[0], back)
    deployment.wait_done()
    assert len(deployment.check_exactly_once()) == len(events)
    specs = {spec_of(worker) for worker in (*old, *new, back)}
    if len(specs) == 1:
        # The same rows under both versions: every score has the features of a run that nothing disturbed.
        expected = undisturbed(deployment, [Phase(events)])
        assert known(deployment.scores(), specs.pop()) == {
            origin: content["features"] for origin, content in expected.items()
        }


@pytest.mark.slow
def test_a_new_spec_id_is_built_in_the_background_and_nothing_is_scored_cold(deploy: Deploy) -> None:
    domain = "tests.broker.domain_two:DOMAIN"
    deployment = deploy(records__features="all", state__entity_scope="own", batch__max_events=50)
    past = list(payments(1_500, accounts=80))
    labels = [label_of(event) for event in past[::50]]
    old = [deployment.worker(name) for name in ("w0", "w1")]
    deployment.started(*old)
    deployment.publish(messages_of(past))
    deployment.wait_done()
    deployment.publish_labels(past[::50])
    deployment.wait_done()
    new = [deployment.worker(name, domain=domain) for name in ("w0", "w1")]
    with traffic(deployment, seed=1) as present:
        wait_scored(*old)
        built = build(deployment, domain=domain)
        assert built["spec_id"] == DOMAIN_TWO.spec_id
        assert all(w["transactions"] > 0 for w in built["checkpoints"].values())
        for before, after in zip(old, new, strict=True):
            assert before.terminate() == 0
            deployment.started(after)
            wait_scored(after)
        refused = built_by(deployment, domain=domain)
        assert refused.returncode == 2
        assert "serves from this state already" in refused.stderr
    deployment.wait_done()
    scores = deployment.check_exactly_once()
    assert len(scores) == len(past) + len(present)
    assert not any("cold" in score.content["flags"] for score in scores)
    restores = [line for worker in new for line in worker.logs("restoring")]
    assert restores
    assert {line["kind"] for line in restores} <= {"clean", "replay"}
    phases = [Phase(past, labels), Phase(present)]
    for spec_id, made_by in ((deployment.domain.spec_id, deployment), (DOMAIN_TWO.spec_id, with_domain(deployment))):
        expected = undisturbed(made_by, phases)
        found = known(scores, spec_id)
        assert len(found) > 200
        assert found == {origin: expected[origin]["features"] for origin in found}


def with_domain(deployment: Deployment) -> Any:
    """As far as `undisturbed` looks: the deployment with the other domain."""
    return SimpleNamespace(
        settings=deployment.settings,
        topics=deployment.topics,
        partitions=deployment.partitions,
        domain=DOMAIN_TWO,
    )


def built_by(deployment: Deployment, **settings: object) -> subprocess.CompletedProcess[str]:
    """`riskstream state build` with these settings, as an operator calls it."""
    command = [sys.executable, "-m", "stream.cli", "state", "build", "--quick-s", "5", "--json"]
    variables = os.environ | deployment.environment(**settings)
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False, timeout=300)


def build(deployment: Deployment, **settings: object) -> dict[str, Any]:
    done = built_by(deployment, **settings)
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def test_added_partitions_are_refused_with_the_procedure(deploy: Deploy) -> None:
    deployment = deploy(partitions=2)
    worker = deployment.worker()
    deployment.started(worker)
    deployment.publish(messages_of(payments(200)))
    deployment.wait_done()
    assert worker.terminate() == 0
    deployment.add_partitions(4)
    refused = deployment.worker()
    refused.launch()
    assert refused.wait_exit() == 12
    assert "has 4 partitions, and the group's state was made with 2" in refused.output()
    assert "docs/operations/partitions.md" in refused.output()
    assert (ROOT / "docs" / "operations" / "partitions.md").is_file()
    assert len(deployment.scores()) == 200
    # Another group has no state that they could spoil.
    other = load_settings(None, {}, {}).settings.kafka.group
    deployment.started(deployment.worker(kafka__group=f"{other}-{deployment.settings.kafka.group}"))
