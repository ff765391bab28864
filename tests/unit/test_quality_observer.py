"""`riskstream quality` over in-memory Kafka: what it reads, shows, keeps over a restart, and prints."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

import stream.app
from stream.app import build_observer, quality_health
from stream.cli.quality import app as quality_app
from stream.clock import SystemClock
from stream.config import KafkaSettings, QualitySettings, Settings
from stream.events.moments import moment_text
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.quality.metrics import QualityMetrics
from stream.quality.observer import WINDOWS, Observer
from stream.quality.reading import References
from stream.topics import topic_names

DAY_MS = 86_400_000
START_MS = 20_000 * DAY_MS


def score(number: int, day: float, *, fraudulent: bool, suspicious: bool, model: str | None = "m@1") -> dict[str, Any]:
    return {
        "event_id": f"e{number}",
        "account_id": f"a{number % 5}",
        "timestamp": moment_text(int(START_MS + day * DAY_MS)),
        "amount": 100.0 if fraudulent else 10.0,
        "currency": "USD",
        "merchant_id": "m",
        "probability": (0.9 if suspicious else 0.05) if model else None,
        "decision": "decline" if suspicious else "approve",
        "model": model,
    }


def label(of: dict[str, Any], *, fraud: bool = True) -> dict[str, Any]:
    named = ("event_id", "account_id", "timestamp", "amount", "currency", "merchant_id")
    verdict = {"fraud": fraud, "labelled_at": of["timestamp"], "source": "chargeback"}
    return {name: of[name] for name in named} | verdict


class Corner:
    """A broker with the five topics, and observers over it."""

    def __init__(self, checkpoint: Path | None = None) -> None:
        quality = QualitySettings(maturity_days=2, checkpoint=checkpoint)
        self.settings = Settings(kafka=KafkaSettings(), quality=quality)
        self.client = MemoryKafka(MemoryBroker(), self.settings.kafka)
        admin = self.client.admin()
        for topic in topic_names(self.settings):
            admin.create_topic(topic, partitions=2, replication_factor=1, config={})

    def publish(self, topic: str, contents: Iterable[Any]) -> None:
        producer = self.client.plain_producer()
        for content in contents:
            value = content if isinstance(content, bytes) else json.dumps(content).encode()
            producer.produce(topic, value, key=value[:20])
        producer.flush()

    def observer(self) -> tuple[Observer, CollectorRegistry]:
        registry = CollectorRegistry()
        observer = build_observer(self.settings, self.client, QualityMetrics(registry), [], SystemClock())
        observer.start()
        return observer, registry


@pytest.fixture
def scores() -> list[dict[str, Any]]:
    """Ten days of a hundred; every tenth is fraud, half of the frauds and a few others are suspicious."""
    return [
        score(
            n, n / 100, fraudulent=n % 10 == 0, suspicious=n % 20 == 0 or n % 50 == 1, model=None if n == 7 else "m@1"
        )
        for n in range(1_000)
    ]


def test_figures_from_the_topics(scores: list[dict[str, Any]]) -> None:
    corner = Corner()
    topics = corner.settings.topics
    frauds = [label(of) for n, of in enumerate(scores) if n % 10 == 0]
    strangers = [label(score(n, 1, fraudulent=True, suspicious=False)) for n in range(5_000, 5_003)]
    corner.publish(topics.labels, [*frauds, *frauds[:5], *strangers, b"no label", label(scores[3], fraud=False)])
    bad_shadow = json.dumps(scores[0] | {"shadow": [{"role": "challenger-1"}]}).encode()
    bad_features = json.dumps(scores[0] | {"features": {"amount": "much"}}).encode()
    corner.publish(topics.scores, [*scores, b"{}", b"no score", json.dumps([1]).encode(), bad_shadow, bad_features])
    observer, registry = corner.observer()
    assert observer.lag == 1_000 + 5 + 100 + 5 + 3 + 2
    assert quality_health(observer, SystemClock()).restoring == {0: observer.lag}
    found = observer.run_to_end()
    assert quality_health(observer, SystemClock()).restoring == {}
    of = found.quality["m@1", "30d"]
    # The newest event is of day 9.99, so that the hours before day 7.96 are mature.
    mature = [n for n in range(1_000) if n / 100 * 24 < 7.99 * 24 // 1 and n != 7]
    fraud = [n for n in mature if n % 10 == 0]
    caught = [n for n in fraud if n % 20 == 0]
    suspicious = [n for n in mature if n % 20 == 0 or n % 50 == 1]
    assert of.counts["scored"] == len(mature)
    assert of.counts["fraud"] == len(fraud)
    assert of.ratios["precision"] == pytest.approx(len(caught) / len(suspicious))
    assert of.ratios["recall"] == pytest.approx(len(caught) / len(fraud))
    assert of.amounts["fraud"] == pytest.approx(100 * len(fraud))
    assert found.quality["none", "30d"].counts["scored"] == 1
    assert found.quality["none", "30d"].ratios == {"alert_rate": 0.0, "false_positive_rate": 0.0}

    def sample(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"riskstream_{name}", labels)

    where = {"model": "m@1", "window": "30d"}
    assert sample("quality_ratio", measure="precision", **where) == pytest.approx(of.ratios["precision"])
    assert sample("quality_events", kind="caught", **where) == len(caught)
    assert sample("quality_amount", kind="fraud", **where) == pytest.approx(100 * len(fraud))
    assert sample("quality_calibration_events", kind="scored", bin="0.1", **where) == len(mature) - len(suspicious)
    assert sample("quality_records_total", kind="labels", outcome="joined") == 101
    assert sample("quality_records_total", kind="labels", outcome="repeated") == 5
    assert sample("quality_records_total", kind="labels", outcome="unreadable") == 1
    assert sample("quality_records_total", kind="scores", outcome="unreadable") == 5
    assert sample("quality_labels_waiting") == 3
    assert sample("quality_lag_events") == 0
    assert sample("quality_sample_ratio") == 1


def test_one_broken_clock_does_not_age_all_other_events(scores: list[dict[str, Any]]) -> None:
    corner = Corner()
    corner.publish(corner.settings.topics.scores, [scores[0] | {"timestamp": "2099-01-01T00:00:00.000Z"}, *scores])
    observer, _ = corner.observer()
    found = observer.run_to_end()
    assert found.clock_ms < START_MS + 10 * DAY_MS
    assert found.quality["m@1", "30d"].counts["scored"] > 700
    assert observer.book.outcomes["scores", "unreadable"] == 1


def test_challengers_are_judged_by_the_same_labels(scores: list[dict[str, Any]]) -> None:
    """One challenger would have found every fraud and nothing else; labels before and behind their scores."""
    plain, shadowed = Corner(), Corner()
    for corner in (plain, shadowed):
        topics = corner.settings.topics
        with_shadow = [
            of | {"shadow": [{"role": "challenger-1", "model": "n@2", **verdict(n % 10 == 0)}]} if n % 2 == 0 else of
            for n, of in enumerate(scores)
        ]
        corner.publish(topics.scores, (with_shadow if corner is shadowed else scores)[:700])
        corner.publish(topics.labels, map(label, scores[:700:10]))
    observers = [corner.observer()[0] for corner in (plain, shadowed)]
    for observer in observers:
        observer.run_to_end()
    for corner in (plain, shadowed):
        # These labels come before their scores, and wait.
        corner.publish(corner.settings.topics.labels, map(label, scores[700::10]))
    for observer in observers:
        while observer.book.outcomes["labels", "joined"] + len(observer.book.waiting_labels) < 100:
            observer.run_once()
    plain.publish(plain.settings.topics.scores, scores[700:])
    shadowed.publish(shadowed.settings.topics.scores, with_shadow[700:])
    for observer in observers:
        while observer.book.outcomes["scores", "counted"] < 1_000:
            observer.run_once()
    expected, found = (observer.run_to_end() for observer in observers)
    champion = found.quality["m@1", "30d"]
    assert champion.counts == expected.quality["m@1", "30d"].counts
    assert champion.ratios == expected.quality["m@1", "30d"].ratios
    assert found.completeness.tolist() == expected.completeness.tolist()
    assert observers[0].book.outcomes == observers[1].book.outcomes
    challenger = found.quality["n@2", "30d"]
    assert challenger.ratios["recall"] == challenger.ratios["precision"] == 1.0
    assert challenger.counts["caught"] == champion.counts["fraud"]
    assert challenger.counts["scored"] == pytest.approx(champion.counts["scored"] / 2, abs=2)


def verdict(suspicious: bool) -> dict[str, Any]:
    return {
        "probability": 0.9 if suspicious else 0.01,
        "score": 900,
        "decision": "decline" if suspicious else "approve",
    }


def test_figures_are_not_shown_before_they_are_whole(scores: list[dict[str, Any]]) -> None:
    corner = Corner()
    corner.publish(corner.settings.topics.scores, scores)
    observer, registry = corner.observer()
    observer.show()
    assert registry.get_sample_value("riskstream_quality_lag_events") == 1_000
    assert not list(next(f for f in registry.collect() if f.name == "riskstream_quality_ratio").samples)
    observer.run_to_end()
    assert list(next(f for f in registry.collect() if f.name == "riskstream_quality_ratio").samples)


def test_a_restart_goes_on_from_its_checkpoint(scores: list[dict[str, Any]], tmp_path: Path) -> None:
    corner = Corner(tmp_path / "quality.npz")
    topics = corner.settings.topics
    corner.publish(topics.scores, scores[:600])
    corner.publish(topics.labels, map(label, scores[:600:10]))
    first, _ = corner.observer()
    first.run_to_end()
    first.save()
    corner.publish(topics.scores, scores[600:])
    corner.publish(topics.labels, map(label, scores[600::10]))
    second, _ = corner.observer()
    assert second.lag == 400 + 40, "what was read is not read again"
    fresh = Corner()
    fresh.publish(topics.scores, scores)
    fresh.publish(topics.labels, map(label, scores[::10]))
    expected = fresh.observer()[0].run_to_end().as_json()
    assert second.run_to_end().as_json() == expected
    # A file that is no checkpoint: the topics are read again, to the same figures.
    (tmp_path / "quality.npz").write_bytes(b"nothing of the kind")
    third, _ = corner.observer()
    assert third.lag == 1_100
    assert third.run_to_end().as_json() == expected


def test_the_command_prints_tables_or_json(scores: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    corner = Corner()
    monkeypatch.setattr(stream.app, "connect", lambda settings: corner.client)
    monkeypatch.setenv("RISKSTREAM_QUALITY__MATURITY_DAYS", "2")
    runner = CliRunner()
    empty = runner.invoke(quality_app, ["--once"])
    assert "no event is old enough" in empty.stdout
    corner.publish(corner.settings.topics.scores, scores)
    corner.publish(corner.settings.topics.labels, map(label, scores[::10]))
    shown = runner.invoke(quality_app, ["--once"])
    assert shown.exit_code == 0, shown.output
    assert "money recall" in shown.stdout
    assert "0.5000" in shown.stdout
    document = json.loads(runner.invoke(quality_app, ["--json"]).stdout.splitlines()[-1])
    assert {row["window"] for row in document["quality"]} == set(WINDOWS)
    assert document["quality"][0]["ratios"]["recall"] == pytest.approx(0.5)


def test_a_bundle_that_does_not_verify_gives_no_reference(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    assert References([tmp_path, tmp_path / "gone"]).read() == {}
