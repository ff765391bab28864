"""Models that change while events flow: who scores what, and that nothing is lost, late or scored twice."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stream.rollout import library, topic
from stream.rollout.records import Deployment, Place, place_of
from stream.scoring.bundle import MANIFEST_FILE, MODEL_FILE, read_manifest, seal
from stream.scoring.lineup import CHAMPION
from tests.broker.conftest import Deploy
from tests.broker.harness import START_MS, Output, WorkerProcess, messages_of, moment_text, payments, until
from tests.broker.harness import Deployment as Corner
from tests.unit.scripted_nets import Spoilt

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

SWAPS = 100
STEP_MS = 10_000


def version_of(bundle: Path, target: Path, version: str) -> Path:
    """The same net under another version: a bundle of its own, sealed anew."""
    shutil.copytree(bundle, target)
    fields = json.loads((target / MANIFEST_FILE).read_bytes())
    (target / MANIFEST_FILE).write_bytes(seal({**fields, "version": version}))
    return target


def spoil(bundle: Path, amount: float) -> None:
    """From now on the bundle verifies as before, and gives NaN for a payment of this amount."""
    fields = json.loads((bundle / MANIFEST_FILE).read_bytes())
    column = fields["aggregate_columns"].index("amount")
    program = torch.jit.script(Spoilt(torch.jit.load(bundle / MODEL_FILE), column, amount))
    program.save(bundle / MODEL_FILE)
    fields["files"][MODEL_FILE] = hashlib.sha256((bundle / MODEL_FILE).read_bytes()).hexdigest()
    (bundle / MANIFEST_FILE).write_bytes(seal(fields))


def shelve(shelves: Path, bundle: Path, version: str) -> Place:
    """A further version in the library."""
    shelves.mkdir(exist_ok=True)
    folder = version_of(bundle, shelves.parent / f"made-{version}", version)
    place = place_of(read_manifest((folder / MANIFEST_FILE).read_bytes()))
    library.add(shelves, folder, place)
    shutil.rmtree(folder)
    return place


def by_moment(count: int, first_ms: int, step_ms: int, seed: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Payments whose time, and Kafka timestamp, goes on by `step_ms`."""
    for number, event in enumerate(payments(count, seed=seed, accounts=60)):
        moment = first_ms + number * step_ms
        yield moment, event | {"timestamp": moment_text(moment)}


def publish_at(corner: Corner, events: Iterator[tuple[int, dict[str, Any]]]) -> int:
    """Publishes events with their Kafka timestamps; returns how many."""
    count = 0
    for moment, event in events:
        corner._producer.produce(
            corner.topics.transactions,
            json.dumps(event).encode(),
            key=event["account_id"].encode(),
            timestamp_ms=moment,
        )
        count += 1
    corner._producer.flush()
    return count


def versions_by_timestamp(corner: Corner, scores: list[Output]) -> list[tuple[int, str]]:
    """(Kafka timestamp of the event, version that scored it), in the log's order per partition."""
    moments = {(r.topic, r.partition, r.offset): r.timestamp for r in corner.read(corner.topics.transactions)}
    return [(moments[output.origin], output.content["model"].rpartition("@")[2]) for output in scores]


def changes(worker: WorkerProcess, role: str = CHAMPION) -> float:
    return worker.metric("riskstream_model_changes_total", role=role)


def test_a_hundred_models_each_from_its_stated_moment_on(deploy: Deploy, bundle: Path, tmp_path: Path) -> None:
    """All workers change at the same events; what was announced under load is verified under load."""
    shelves = tmp_path / "library"
    places = [shelve(shelves, bundle, f"v{number:03d}") for number in range(1, SWAPS + 1)]
    corner = deploy(
        partitions=4,
        scoring__bundle=bundle,
        scoring__library=shelves,
        scoring__watch_interval_ms=100,
        scoring__max_batch_ms=5_000,
        batch__max_events=64,
    )
    topic.create(corner.admin, corner.settings)
    workers = [corner.worker("w0"), corner.worker("w1")]
    corner.started(*workers)
    first_ms = START_MS + 3_600_000
    for number, place in enumerate(places):
        moment = first_ms + number * STEP_MS
        deployed = Deployment(role=CHAMPION, bundle=place, from_ms=moment, deployed_ms=START_MS)
        topic.publish(corner.client, corner.settings, deployed)
    # Traffic from before the first moment, while a hundred bundles are verified.
    published = publish_at(corner, by_moment(1_500, START_MS, 1_000, seed=1))
    until(lambda: all(changes(worker) == SWAPS for worker in workers), "every worker has them all", timeout_s=240)
    for part in range(10):
        start_ms = first_ms - 5_000 + part * (SWAPS // 10) * STEP_MS
        published += publish_at(corner, by_moment(400, start_ms, (SWAPS // 10) * STEP_MS // 400, seed=2 + part))
    corner.wait_done()
    scores = corner.check_exactly_once()
    assert len(scores) == published
    assert all(output.content["flags"] == [] or "rules_only" not in output.content["flags"] for output in scores)
    found = versions_by_timestamp(corner, scores)
    for moment, version in found:
        number = (moment - first_ms) // STEP_MS
        assert version == ("7" if number < 0 else f"v{min(number, SWAPS - 1) + 1:03d}"), (moment, version)
    assert len({version for _, version in found}) > SWAPS * 0.9
    for worker in workers:
        assert worker.metric("riskstream_identity_gap_events") == 0
        assert worker.metric("riskstream_model_refusals_total") == 0
        assert worker.metric("riskstream_model_info", role=CHAMPION, version="v100") == 1


def test_a_link_that_moves_under_load_and_bundles_that_are_refused(
    deploy: Deploy, bundle: Path, tmp_path: Path
) -> None:
    link = tmp_path / "current"
    library.point(link, bundle)
    corner = deploy(partitions=2, scoring__bundle=link, scoring__watch_interval_ms=50, scoring__max_batch_ms=5_000)
    worker = corner.worker("w0")
    corner.started(worker)
    events = list(payments(2_400, accounts=50))
    for number in range(8):
        corner.publish(messages_of(events[number * 200 : number * 200 + 100]))
        library.point(link, version_of(bundle, tmp_path / f"v{number}", f"v{number}"))
        corner.publish(messages_of(events[number * 200 + 100 : number * 200 + 200]))
        until(lambda count=number + 1: changes(worker) == count, f"model {number} runs")  # type: ignore[misc]
    damaged = version_of(bundle, tmp_path / "damaged", "damaged")
    content = bytearray((damaged / "model.ts").read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / "model.ts").write_bytes(content)
    library.point(link, damaged)
    until(lambda: worker.metric("riskstream_model_refusals_total", role=CHAMPION) == 1, "it is refused")
    corner.publish(messages_of(events[1_600:]))
    corner.wait_done()
    scores = corner.check_exactly_once()
    assert len(scores) == len(events)
    by_partition: dict[int, list[str]] = {}
    for output in scores:
        models = by_partition.setdefault(output.record.partition, [])
        if not models or models[-1] != output.content["model"]:
            models.append(output.content["model"])
    order = ["tiny@7", *(f"tiny@v{number}" for number in range(8))]
    for models in by_partition.values():
        assert models == [model for model in order if model in models], "in order, none twice"
        assert models[-1] == "tiny@v7"
    (refusal,) = worker.logs("bundle refused; the model that runs stays")
    assert "model.ts" in refusal["reason"]


def test_a_model_that_gives_nan_gives_way_to_the_one_before_it(deploy: Deploy, bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    library.point(link, bundle)
    corner = deploy(partitions=1, scoring__bundle=link, scoring__watch_interval_ms=50, scoring__max_batch_ms=5_000)
    worker = corner.worker("w0")
    corner.started(worker)
    events = list(payments(300, accounts=20))
    events[200]["amount"] = 424_242.0
    corner.publish(messages_of(events[:100]))
    corner.wait_done()
    brittle = version_of(bundle, tmp_path / "brittle", "brittle")
    spoil(brittle, events[200]["amount"])
    library.point(link, brittle)
    until(lambda: changes(worker) == 1, "the brittle model runs")
    for part in (events[100:200], events[200:201], events[201:]):
        corner.publish(messages_of(part))
        corner.wait_done()
    models = [score.content["model"] for score in corner.check_exactly_once()]
    assert models == ["tiny@7"] * 100 + ["tiny@brittle"] * 100 + ["tiny@7"] * 100
    assert worker.metric("riskstream_model_failures_total") == 1
    assert worker.metric("riskstream_model_info", role=CHAMPION, version="7") == 1, "who scores is shown"
    assert worker.metric("riskstream_flags_total", flag="rules_only") == 0
    (failure,) = worker.logs("the model failed and is replaced by the one before it")
    assert "not finite" in failure["error"]


def test_challengers_score_beside_and_decide_nothing(deploy: Deploy, bundle: Path, tmp_path: Path) -> None:
    shelves = tmp_path / "library"
    place = shelve(shelves, bundle, "rival")
    corner = deploy(
        partitions=2,
        scoring__bundle=bundle,
        scoring__challengers=str(version_of(bundle, tmp_path / "fixed", "fixed")),
        scoring__library=shelves,
        scoring__watch_interval_ms=50,
        scoring__max_batch_ms=5_000,
    )
    topic.create(corner.admin, corner.settings)
    worker = corner.worker("w0")
    corner.started(worker)
    events = list(payments(600, accounts=30))
    corner.publish(messages_of(events[:200]))
    corner.wait_done()
    topic.publish(
        corner.client, corner.settings, Deployment(role="challenger-2", bundle=place, from_ms=0, deployed_ms=0)
    )
    until(lambda: changes(worker, "challenger-2") == 1, "the rival has its place")
    corner.publish(messages_of(events[200:400]))
    corner.wait_done()
    gone = Deployment(role="challenger-2", bundle=None, from_ms=0, deployed_ms=0, former=place)
    topic.publish(corner.client, corner.settings, gone)
    until(lambda: changes(worker, "challenger-2") == 2, "and leaves it")
    corner.publish(messages_of(events[400:]))
    corner.wait_done()
    scores = corner.check_exactly_once()
    names = {event["event_id"]: number // 200 for number, event in enumerate(events)}
    expected = [["tiny@fixed"], ["tiny@fixed", "tiny@rival"], ["tiny@fixed"]]
    for output in scores:
        content = output.content
        assert content["model"] == "tiny@7"
        assert [shadow["model"] for shadow in content["shadow"]] == expected[names[content["event_id"]]]
        # The same net under another name says the same.
        assert all(shadow["probability"] == pytest.approx(content["probability"]) for shadow in content["shadow"])
        assert all(shadow["decision"] == content["decision"] for shadow in content["shadow"])
    compared = "riskstream_shadow_decisions_total"
    assert worker.metric(compared, role="challenger-1") == 600
    assert worker.metric(compared, role="challenger-2") == 200
    assert worker.metric(compared, role="challenger-2", champion="approve", challenger="decline") == 0
    assert worker.metric("riskstream_shadow_difference_total", role="challenger-1") < 1e-3
