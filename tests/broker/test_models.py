"""Models that change while events flow: who scores what, and that nothing is lost, late or scored twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from stream.rollout import library, topic
from stream.rollout.records import Deployment
from stream.scoring.bundle import MANIFEST_FILE, MODEL_FILE, seal
from stream.scoring.lineup import CHAMPION
from tests.broker.conftest import Deploy
from tests.broker.harness import Deployment as Corner
from tests.broker.harness import Output, messages_of, payments, until
from tests.broker.rollouts import LOADING_MS, changes, rollout, shelve, version_of, wait
from tests.unit.scripted_nets import Spoilt

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

SWAPS = 100
LATE_WORKER = Path(__file__).with_name("late_worker.py")


def spoil(bundle: Path, amount: float) -> None:
    """From now on the bundle verifies as before, and gives NaN for a payment of this amount."""
    fields = json.loads((bundle / MANIFEST_FILE).read_bytes())
    column = fields["aggregate_columns"].index("amount")
    program = torch.jit.script(Spoilt(torch.jit.load(bundle / MODEL_FILE), column, amount))
    program.save(bundle / MODEL_FILE)
    fields["files"][MODEL_FILE] = hashlib.sha256((bundle / MODEL_FILE).read_bytes()).hexdigest()
    (bundle / MANIFEST_FILE).write_bytes(seal(fields))


def models_by_timestamp(corner: Corner, scores: list[Output]) -> list[tuple[int, str]]:
    """(Kafka timestamp of the event, model that scored it)."""
    moments = {(r.topic, r.partition, r.offset): r.timestamp for r in corner.read(corner.topics.transactions)}
    return [(moments[output.origin], output.content["model"]) for output in scores]


def test_a_hundred_models_each_from_its_stated_moment_on(deploy: Deploy, bundle: Path, tmp_path: Path) -> None:
    """All workers change at the same events, and none waits for it: not while models load, nor when they change."""
    made = rollout(deploy, bundle, tmp_path, swaps=SWAPS)
    made.run()
    scores = made.corner.check_exactly_once()
    assert len(scores) == made.published
    assert all("rules_only" not in output.content["flags"] for output in scores)
    found = models_by_timestamp(made.corner, scores)
    assert [pair for pair in found if pair[1] != made.expected_model(pair[0], before="tiny@7")] == []
    assert len({model for _, model in found}) == SWAPS + 1
    for worker in made.workers:
        assert worker.metric("riskstream_identity_gap_events") == 0
        assert worker.metric("riskstream_model_refusals_total") == 0
        assert worker.metric("riskstream_model_info", role=CHAMPION, version="v100") == 1
    for others in (made.loading, made.swapping):
        waited = wait(made.quiet, others, scores)
        assert not waited.is_late, waited


@pytest.mark.parametrize("mistake", ["score", "take"])
def test_a_bundle_that_the_engines_thread_loads_makes_events_late(
    deploy: Deploy, bundle: Path, tmp_path: Path, mistake: str
) -> None:
    made = rollout(deploy, bundle, tmp_path, swaps=20, program=(LATE_WORKER, mistake, str(LOADING_MS)))
    made.run()
    scores = made.corner.check_exactly_once()
    waited = wait(made.quiet, made.swapping if mistake == "score" else made.loading, scores)
    assert waited.is_late, waited


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
