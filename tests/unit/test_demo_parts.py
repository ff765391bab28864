"""The parts of the demo that need no servers: its timeline, what it counts, what it shows."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from stream.clock import ManualClock
from stream.config import Settings, TopicSettings
from stream.demo.children import Child
from stream.demo.plan import DAY_MS, Plan, write_rates, write_settings
from stream.demo.view import LiveView, Picture, PlainView
from stream.demo.watch import Latencies, Watch
from stream.features.money import Rates
from stream.kafka.headers import source_header
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.simulate.simulation import Simulation
from stream.topics import create_topics, plan_topics

TOPICS = TopicSettings()


def test_the_live_timeline_goes_on_where_the_training_ended_whenever_the_demo_runs() -> None:
    plan = Plan(accounts=40)
    training = plan.training
    trained = Simulation(
        accounts=int(training["--accounts"]),
        seed=int(training["--seed"]),
        fraud_rate=float(training["--fraud-rate"]),
        start_ms=int(np.datetime64(training["--start"], "ms").astype(np.int64)),
    )
    for now_ms in (1_790_000_000_000, 1_801_234_567_890):
        live = plan.simulation(now_ms)
        assert live.start_ms + (plan.history_days + 300) * DAY_MS < now_ms
        for day in (0, plan.history_days):
            ours, theirs = live.day(day), trained.day(day)
            assert (ours.time_ms - live.start_ms).tolist() == (theirs.time_ms - trained.start_ms).tolist()
            assert ours.text["merchant_id"].tolist() == theirs.text["merchant_id"].tolist()


def test_the_history_covers_the_days_that_are_played_before_live() -> None:
    plan = Plan(accounts=40)
    simulation = plan.simulation(1_800_000_000_000)
    batch = simulation.generate(int(plan.training["--simulated"]))
    end_ms = simulation.start_ms + plan.history_days * DAY_MS
    assert abs(int(batch.time_ms[-1]) - end_ms) < 2 * DAY_MS


def test_rates_and_settings_can_be_read_back(tmp_path: Path) -> None:
    rates = write_rates(tmp_path)
    known = Rates.load(rates)
    assert all(known.knows(currency) for currency in ("USD", "EUR", "SEK", "MXN"))
    file, settings = write_settings(
        tmp_path, bootstrap="127.0.0.1:1", redis_url="redis://127.0.0.1:2/0", bundle=tmp_path, rates=rates
    )
    assert file.is_file()
    assert settings.kafka.bootstrap_servers == "127.0.0.1:1"
    assert settings.scoring.rates == rates


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("size", [1, 2, 99, 1000])
def test_percentiles_are_those_of_the_sorted_list(share: float, size: int) -> None:
    values = np.random.default_rng(size).integers(0, 300, size)
    latencies = Latencies()
    for value in values.tolist():
        latencies.add(value)
    place = max(0, int(np.ceil(share * size)) - 1)
    assert latencies.percentile(share) == np.sort(values)[place]
    assert Latencies().percentile(share) is None


def test_the_watch_counts_what_the_topics_hold() -> None:
    clock, client = ManualClock(), MemoryKafka(MemoryBroker())
    create_topics(client.admin(), plan_topics(Settings(), partitions=2))
    producer = client.plain_producer()
    now_ms = clock.now_ms()
    for number, (band, score) in enumerate([("severe", 900), ("low", 10), ("low", 5), ("elevated", 600)]):
        value = json.dumps({"band": band, "score": score}).encode()
        headers = [source_header(now_ms - 10 * number)] if number else []
        producer.produce(TOPICS.scores, value, partition=number % 2, headers=headers)
    producer.produce(TOPICS.alerts, b'{"decision": "decline"}', partition=1)
    for topic in (TOPICS.transactions, TOPICS.labels):
        producer.produce(TOPICS.dead_letters, json.dumps({"origin": {"topic": topic}}).encode(), partition=0)
    watch = Watch(client.reader(), TOPICS, dict.fromkeys(TOPICS.model_dump().values(), 2), clock)
    while not watch.has_read_all():
        watch.poll(10)
    seen = watch.seen
    assert (seen.scored, seen.alerts, seen.dead) == (4, 1, 1)
    assert list(watch.bands().items()) == [("low", 2), ("elevated", 1), ("severe", 1)]
    assert len(seen.latencies) == 3
    assert (seen.latencies.percentile(0.5), seen.latencies.percentile(1.0)) == (20.0, 30.0)
    assert [alert["decision"] for alert in seen.last_alerts] == ["decline"]


def picture(**changes: Any) -> Picture:
    alert = {
        "decision": "decline",
        "score": 987,
        "band": "severe",
        "amount": 1234.5,
        "currency": "EUR",
        "account_id": "4000-1234-5678",
        "timestamp": "2026-11-23T10:11:12Z",
        "reasons": [{"text": "9 payments in 10 min"}],
    }
    values: dict[str, Any] = {
        "doing": "live",
        "seconds": 12.0,
        "events": 1_010,
        "labels": 5,
        "scored": 1_000,
        "duplicates": 4,
        "dead": 3,
        "alerts": 1,
        "events_per_s": 199.6,
        "p50_ms": 12,
        "p99_ms": None,
        "bands": {"low": 900, "severe": 100},
        "last_alerts": (alert,),
    }
    return Picture(**(values | changes))


def test_plain_lines_come_every_two_seconds_and_name_each_alert_once(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView()
    for _ in range(3):
        view.show(picture())
    view.show(picture(), at_once=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "1,010 in = 1,000 scored + 4 duplicates + 3 dead + 3 in flight" in lines[0]
    assert "200 events/s" in lines[0]
    assert "p50 12 ms p99 -" in lines[0]
    assert "DECLINE  score 987 (severe)  1,234.50 EUR  account …5678" in lines[1]
    assert "9 payments in 10 min" in lines[1]
    assert "4000-1234-5678" not in "".join(lines)


def test_the_live_view_shows_the_same() -> None:
    out = io.StringIO()
    view = LiveView("title", Console(file=out, force_terminal=True, width=120, height=40, color_system=None))
    view.say("before")
    view.show(picture())
    view.close()
    text = out.getvalue()
    for expected in (
        "before",
        "title",
        "1,010 in",
        "12 ms",
        "low",
        "severe",
        "DECLINE",
        "…5678",
        "9 payments in 10 min",
    ):
        assert expected in text
    assert "4000-1234-5678" not in text


def wait(child: Child) -> None:
    while not child.has_ended():
        time.sleep(0.02)


def test_a_child_runs_without_this_process_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RISKSTREAM_KAFKA__GROUP", "not-for-children")
    child = Child(tmp_path, ["config", "--json"])
    child.launch()
    wait(child)
    assert child.exit_code == 0
    assert "not-for-children" not in child.log_path.read_text()
    assert json.loads(child.log_path.read_text().splitlines()[-1])["kafka.group"]["origin"] == "default"


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    child = Child(tmp_path, ["config", "--set", "kafka.grop=x"])
    child.launch()
    wait(child)
    assert child.exit_code == 2
    assert "did you mean kafka.group?" in child.last_words()
