"""Dashboards, alerts and runbooks against the real thing: Prometheus scrapes live workers on real Kafka and Redis.

Every panel's and every alert's PromQL goes through Prometheus's own API. What traffic must show, must be shown; what a
query names, somebody must export; what is exported, somebody must look at.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from stream.events.moments import moment_ms, moment_text
from stream.events.records import DECISIONS
from stream.history.batch import NEVER_MS
from stream.simulate.payments import DAY_MS
from stream.simulate.simulation import Simulation
from stream.stack import ApacheKafka, PrometheusServer, RedisServer
from tests.broker.conftest import after_history, bundle, simulation  # noqa: F401  # fixtures
from tests.broker.harness import Deployment, Message, WorkerProcess, messages_of, until
from tests.broker.test_models import version_of
from tests.conftest import require
from tests.deploy.dashboards import (
    ROOT,
    Query,
    family,
    metrics_in,
    panel_queries,
    rule_queries,
    runbook_blocks,
    unread,
    variable_queries,
)
from tests.unit.naive_quality import Score, Verdict, naive_counts

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.slow]

EVENTS = 1_800
WAVES = 6
MATURITY_DAYS = 2
VARIABLES = {"worker": ".*", "model": ".*", "window": "7d"}

SLOW = ("RiskstreamLatencyBudgetBurnsFast", "RiskstreamLatencyBudgetBurns", "RiskstreamLagGrowing")
"""Alerts that a busy machine may give cause for."""


class QualityProcess(WorkerProcess):
    """`riskstream quality` as a child."""

    kind: ClassVar[str] = "riskstream quality"

    def _command(self) -> Sequence[str | Path]:
        return [*super()._command()[:-1], "quality"]


@dataclass
class Prometheus:
    """Questions to a running server."""

    address: str

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer. AssertionError with Prometheus's own words when it refuses."""
        url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.loads(answer.read())["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def values(self, expression: str) -> list[float]:
        """What an instant query answers, without NaN."""
        result = self.get("query", query=expression)["result"]
        values = [float(series["value"][1]) for series in result]
        return [value for value in values if math.isfinite(value)]

    def names(self) -> set[str]:
        return set(self.get("label/__name__/values"))


@dataclass
class Scene:
    """A deployment under watch."""

    deployment: Deployment
    workers: list[WorkerProcess]
    quality: QualityProcess
    prometheus: Prometheus
    bundle: Path
    answers: dict[str, list[float]] = field(default_factory=dict)

    def exported(self) -> set[str]:
        """The metrics that the processes' /metrics show now, as families with their own suffix."""
        found = set()
        for process in (*self.workers, self.quality):
            for metric in text_string_to_metric_families(process.get("/metrics")[1]):
                found |= {family(sample.name) for sample in metric.samples if not sample.name.endswith("_created")}
        return found


@pytest.fixture(scope="module")
def scene(
    apache_kafka: ApacheKafka,
    redis_server: RedisServer,
    bundle: Path,  # noqa: F811
    simulation: Simulation,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Scene]:
    """Two workers, riskstream quality and Prometheus under mixed traffic, asked while it flows."""
    require(PrometheusServer)
    folder = tmp_path_factory.mktemp("observability")
    current = folder / "current"
    current.symlink_to(bundle)
    deployment = Deployment(
        apache_kafka,
        redis_server,
        "observability",
        folder / "deployment",
        partitions=2,
        scoring__bundle=current,
        scoring__challengers=str(version_of(bundle, folder / "challenger", "8")),
        scoring__watch_interval_ms=200,
        records__features="all",
        quality__maturity_days=MATURITY_DAYS,
        state__arena_accounts=1_024,
        batch__max_events=512,
    ).create_topics()
    prometheus = None
    try:
        workers = [deployment.worker("w0"), deployment.worker("w1")]
        quality = QualityProcess(folder / "quality", deployment.environment(), ("-m", "stream.cli"))
        deployment.workers.append(quality)
        deployment.started(*workers, ready=False)
        quality.start()
        until(lambda: all(process.is_ready() for process in (*workers, quality)), "all are ready")
        prometheus = PrometheusServer(folder / "prometheus", configuration(folder, workers, quality)).start()
        made = Scene(deployment, workers, quality, Prometheus(prometheus.address), bundle)
        send_traffic(made, simulation, current)
        yield made
    finally:
        deployment.close()
        if prometheus is not None:
            prometheus.kill()


def configuration(folder: Path, workers: Sequence[WorkerProcess], quality: QualityProcess) -> Path:
    """The repository's own configuration and rules, with the addresses of these processes, and quicker."""
    content = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    content["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    addresses = {"riskstream": workers, "riskstream-quality": [quality]}
    assert {job["job_name"] for job in content["scrape_configs"]} == set(addresses)
    for job in content["scrape_configs"]:
        targets = [process.address.removeprefix("http://") for process in addresses[job["job_name"]]]
        job["static_configs"] = [{"targets": targets}]
    shutil.copytree(ROOT / "deploy" / "prometheus" / "rules", folder / "rules")
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(content))
    return path


def send_traffic(scene: Scene, simulation: Simulation, current: Path) -> None:  # noqa: F811
    """Waves of payments with all that a dashboard is for: labels, repeats, late ones, bad ones, odd currencies."""
    deployment, topics = scene.deployment, scene.deployment.topics
    batch = after_history(simulation, EVENTS)
    events = list(batch.events())
    labels = {
        place: {name: event[name] for name in event if name in deployment.domain.label.model_fields}
        | {"fraud": bool(batch.fraud[place] == 1), "labelled_at": moment_text(int(batch.known_ms[place]))}
        | {"source": "chargeback"}
        for place, event in enumerate(events)
        if batch.fraud[place] == 1 and batch.known_ms[place] != NEVER_MS
    }
    assert len(labels) > 20
    size = EVENTS // WAVES
    for wave in range(WAVES):
        part = events[wave * size : (wave + 1) * size]
        own = [labels[place] for place in range(wave * size, (wave + 1) * size) if place in labels]
        bad = [Message(b"no json"), Message(json.dumps({"event_id": "x"}).encode(), b"x")] * 2
        odd = [part[5] | {"event_id": f"odd-{wave}", "currency": "XAU"}]
        late = [part[7] | {"event_id": f"late-{wave}", "timestamp": part[0]["timestamp"]}]
        deployment.publish([*messages_of(part), *messages_of(part[:5]), *bad, *messages_of(odd), *messages_of(late)])
        deployment.publish([*messages_of(own), *messages_of(own[:1]), Message(b"no label")], topics.labels)
        deployment.wait_done()
        if wave == WAVES - 2:
            # A bundle that does not verify takes the place of the good one: refused, counted, an alert.
            broken = current.parent / "broken"
            shutil.copytree(scene.bundle, broken)
            (broken / "model.ts").write_bytes(b"no model")
            point(current, broken)
        time.sleep(1.5)
    until(lambda: scene.quality.metric("riskstream_quality_lag_events") == 0, "quality has read everything")
    until(lambda: scene.quality.metric("riskstream_drift_psi") > 0, "quality shows drift")
    settled = scene.prometheus
    until(lambda: bool(settled.values('riskstream_drift_psi{column!="probability"}')), "Prometheus has the figures")
    firing = 'ALERTS{alertname="RiskstreamModelFailing", alertstate="firing"}'
    until(lambda: bool(settled.values(firing)), "a refused bundle is an alert")
    # A scrape and an evaluation of the recorded series lie between the last commit and this.
    until(lambda: settled.values("riskstream:consumer_lag_events:sum") == [0, 0], "nothing waits, by Prometheus")
    point(current, scene.bundle)
    # At once, before the last wave leaves the window of the rates.
    for query in panel_queries(VARIABLES):
        scene.answers[query.place] = settled.values(query.expression)


def point(link: Path, target: Path) -> None:
    """Moves a symlink in one step."""
    step = link.with_name("next")
    step.symlink_to(target)
    step.replace(link)


def test_every_panel_has_an_answer(scene: Scene) -> None:
    assert len(scene.answers) > 80
    assert [place for place, values in scene.answers.items() if not values] == []


def test_the_numbers_of_the_overview_are_those_of_the_traffic(scene: Scene) -> None:
    assert scene.answers["overview: Identity gap A"] == [0]
    assert scene.answers["overview: Workers A"] == [2]
    assert scene.answers["overview: Lag A"] == [0]
    assert 0.005 < scene.answers["overview: Dead letters A"][0] < 0.05
    assert scene.answers["overview: Degraded A"] == [0]
    recall = scene.answers["model: Recall A"]
    assert len(recall) == 2, "champion and challenger"
    assert all(0 <= value <= 1 for value in recall)
    assert set(scene.answers["overview: Alerts that fire A"]) == {1}


def test_the_figures_of_quality_are_those_of_a_slow_look_at_the_topics(scene: Scene) -> None:
    found = scene.deployment.scores()
    identities = {key: place for place, key in enumerate({identity_of(score.content): None for score in found})}
    scores = [
        Score(
            identity=identities[identity_of(score.content)],
            time_ms=moment_ms(score.content["timestamp"]),
            amount_minor=0,
            probability=score.content["probability"],
            decision=DECISIONS.index(score.content["decision"]),
            model=score.content["model"],
        )
        for score in found
    ]
    contents = [
        json.loads(record.value or b"")
        for record in scene.deployment.read(scene.deployment.topics.labels)
        if record.key
    ]
    labels = [
        Verdict(
            identities[identity_of(label)],
            moment_ms(label["timestamp"]),
            moment_ms(label["labelled_at"]),
            label["fraud"],
        )
        for label in contents
    ]
    expected = naive_counts(scores, labels, maturity_ms=MATURITY_DAYS * DAY_MS, window_ms=7 * DAY_MS, model="tiny@7")
    assert expected["labelled_fraud"] > 10
    shown = {"kind": "scored", "model": "tiny@7", "window": "7d"}
    # A lag of nothing is that of the last time it looked.
    until(lambda: scene.quality.metric("riskstream_quality_events", **shown) >= expected["scored"], "all is counted")
    for kind in ("scored", "suspicious", "declined", "labelled_fraud"):
        got = scene.quality.metric("riskstream_quality_events", kind=kind, model="tiny@7", window="7d")
        assert got == expected[kind], kind
    for kind, name in (("caught", "caught"), ("missed", "missed")):
        # Late labels are made up for: never fewer than have come.
        got = scene.quality.metric("riskstream_quality_events", kind=kind, model="tiny@7", window="7d")
        assert expected[name] <= got <= 5 * max(expected[name], 1), kind


def identity_of(content: Mapping[str, Any]) -> tuple[str, str]:
    return content["account_id"], content["event_id"]


def test_every_rule_can_be_asked(scene: Scene) -> None:
    for query in rule_queries():
        values = scene.prometheus.values(query.expression)
        if query.place.startswith("riskstream:"):
            assert values, f"{query.place} records nothing"
    rules = [rule for group in scene.prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {query.place for query in rule_queries()}
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
    firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
    assert "RiskstreamModelFailing" in firing
    assert firing <= {"RiskstreamModelFailing", *SLOW}


def test_every_variable_has_values(scene: Scene) -> None:
    for place, metric, label in variable_queries():
        found = scene.prometheus.get(f"label/{label}/values", **{"match[]": metric})
        assert found, place


def test_nothing_names_a_metric_that_nobody_exports(scene: Scene) -> None:
    there = scene.prometheus.names()
    queries = [*panel_queries(VARIABLES), *rule_queries(), *runbook_blocks("promql")]
    named = {name: query.place for query in queries for name in metrics_in(query.expression)}
    assert len(named) > 50
    assert {name: place for name, place in named.items() if name not in there} == {}


def test_every_exported_metric_is_looked_at(scene: Scene) -> None:
    assert unread(scene.exported()) == set()


def test_a_bad_query_and_an_empty_answer_are_found(scene: Scene) -> None:
    with pytest.raises(AssertionError, match="parse error"):
        scene.prometheus.values("sum(riskstream_events_total")
    assert scene.prometheus.values("riskstream_luck_total") == []
    assert scene.prometheus.values("sum(riskstream_events_total) * NaN") == []


def test_the_queries_of_the_runbooks_can_be_asked(scene: Scene) -> None:
    queries = list(runbook_blocks("promql"))
    assert len({query.place for query in queries}) >= 15
    for query in queries:
        scene.prometheus.values(query.expression)


def test_the_commands_of_the_runbooks_work(scene: Scene) -> None:
    """All that stands under "How to look", as it stands there."""
    commands: dict[str, Query] = {query.expression: query for query in runbook_blocks("")}
    assert len(commands) > 10
    environment = scene.deployment.environment() | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": os.environ.get("HOME", "/"),
        "WORKER": scene.workers[0].address,
        "REDIS": scene.deployment.settings.redis.url.get_secret_value(),
        "BUNDLE": str(scene.bundle),
    }
    with ThreadPoolExecutor(3) as several:
        said = several.map(lambda line: failure(line, environment), commands)
        failed = {query.place: words for query, words in zip(commands.values(), said, strict=True) if words}
    assert failed == {}


def failure(line: str, environment: Mapping[str, str]) -> str | None:
    """What a command line says when it fails; None when it does not."""
    # `curl --fail` too: an answer that is no 200 is a failure here.
    line = line.replace("curl -s", "curl -s --fail")
    done = subprocess.run(
        ["bash", "-euc", line], env=dict(environment), capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode == 0 and done.stdout.strip() and "(error)" not in done.stdout:
        return None
    return f"{line}: exit {done.returncode}: {(done.stdout + done.stderr)[-500:]}"


def test_a_command_that_fails_is_found() -> None:
    environment = {"PATH": os.environ["PATH"]}
    assert failure("echo well", environment) is None
    assert "exit 1" in (failure("false", environment) or "")
    assert "exit 0" in (failure("true", environment) or "")
    assert failure("curl -s http://127.0.0.1:9/livez", environment) is not None
