"""`riskstream demo` as a user runs it: what it prints, how it ends, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stream.app import connect
from stream.demo.plan import write_settings
from stream.kafka.port import TopicPartition
from stream.kafka.reading import read_range
from stream.stack import EmbeddedKafka, EmbeddedRedis
from tests.conftest import require

pytestmark = [pytest.mark.embedded, pytest.mark.slow]

KEYS = [
    "events",
    "scored",
    "duplicates",
    "dead",
    "alerts",
    "identity_holds",
    "latency_ms",
    "events_per_s",
    "seconds",
]
# The first run on a machine trains a model.
_PATIENCE_S = 400.0


def processes_of(folder: Path) -> list[str]:
    """Command lines that name the folder: all of the demo's processes do, or have it as their own."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes() + b" " + os.fsencode(os.readlink(entry / "cwd"))
                if os.fsencode(folder) in words:
                    found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found


class Demo:
    """A demo under way, with its temporary files in a folder of this test."""

    def __init__(self, folder: Path, *words: str) -> None:
        require(EmbeddedKafka)
        require(EmbeddedRedis)
        self.folder = folder / "tmp"
        self.folder.mkdir()
        self._out = (folder / "out").open("w+")
        self._err = (folder / "err").open("w+")
        # A setting of the user's own must not lead the demo to the user's servers.
        environment = os.environ | {"TMPDIR": str(self.folder), "RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}
        command = [sys.executable, "-m", "stream.cli", "demo", *words]
        self.process = subprocess.Popen(command, env=environment, stdout=self._out, stderr=self._err)

    def lines(self) -> list[str]:
        return (self.folder.parent / "out").read_text().splitlines()

    def errors(self) -> str:
        return (self.folder.parent / "err").read_text()

    def wait_for(self, text: str) -> None:
        """Until a line of its output contains the text."""
        deadline = time.monotonic() + _PATIENCE_S
        while not any(text in line for line in self.lines()):
            assert self.process.poll() is None, self.errors()
            assert time.monotonic() < deadline, self.lines()
            time.sleep(0.1)

    def result(self) -> tuple[int, dict[str, Any]]:
        """Exit code and last line, once it has ended."""
        code = self.process.wait(_PATIENCE_S)
        return code, json.loads(self.lines()[-1])

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._out.close()
        self._err.close()


@pytest.fixture
def demos(tmp_path: Path) -> Iterator[list[Demo]]:
    started: list[Demo] = []
    yield started
    for demo in started:
        demo.close()


def check(code: int, document: dict[str, Any]) -> None:
    assert list(document) == KEYS
    assert document["scored"] > 0
    assert document["alerts"] > 0
    assert document["identity_holds"] is True
    assert document["events"] == document["scored"] + document["duplicates"] + document["dead"]
    assert 0 < document["latency_ms"]["p50"] <= document["latency_ms"]["p99"]
    assert document["events_per_s"] > 0
    assert code == 0


def test_it_ends_by_itself_and_leaves_nothing(demos: list[Demo], tmp_path: Path) -> None:
    demos.append(demo := Demo(tmp_path, "--seconds", "15", "--rate", "150"))
    code, document = demo.result()
    check(code, document)
    assert document["seconds"] >= 15
    assert any("live" in line and "events/s" in line for line in demo.lines())
    assert any("REVIEW" in line or "DECLINE" in line for line in demo.lines())
    assert not any(line.startswith("\033") for line in demo.lines())
    assert processes_of(demo.folder) == []
    assert list(demo.folder.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_it_in_good_order(demos: list[Demo], tmp_path: Path, number: signal.Signals) -> None:
    demos.append(demo := Demo(tmp_path, "--rate", "100"))
    demo.wait_for("  live  ")
    time.sleep(3)
    demo.process.send_signal(number)
    check(*demo.result())
    assert processes_of(demo.folder) == []
    assert list(demo.folder.iterdir()) == []


def test_killed_it_takes_everything_with_it(demos: list[Demo], tmp_path: Path) -> None:
    demos.append(demo := Demo(tmp_path))
    demo.wait_for("warming up")
    assert len(processes_of(demo.folder)) >= 4
    demo.process.kill()
    demo.process.wait()
    deadline = time.monotonic() + 10
    while processes_of(demo.folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(demo.folder) == []


def test_stopped_before_anything_was_scored_it_says_so(demos: list[Demo], tmp_path: Path) -> None:
    demos.append(demo := Demo(tmp_path))
    demo.wait_for("a model:")
    demo.process.send_signal(signal.SIGTERM)
    code, document = demo.result()
    assert code == 1
    assert list(document) == KEYS
    assert document["scored"] == 0
    assert processes_of(demo.folder) == []
    assert list(demo.folder.iterdir()) == []


def test_what_a_long_demo_leaves_can_be_audited(tmp_path: Path) -> None:
    """The embedded broker answers a fetch with all it has: here 110 MB, more than kafka-python takes by default."""
    require(EmbeddedKafka)
    count, scores = 130, TopicPartition("risk-scores", 0)
    with EmbeddedKafka(tmp_path / "kafka") as kafka:
        _, settings = write_settings(
            tmp_path, bootstrap=kafka.address, redis_url="redis://127.0.0.1:1/0", bundle=tmp_path, rates=tmp_path
        )
        client = connect(settings)
        with contextlib.closing(client.admin()) as admin:
            admin.create_topic(scores.topic, partitions=1, replication_factor=1, config={})
        with contextlib.closing(client.plain_producer()) as producer:
            for _ in range(count):
                producer.produce(scores.topic, bytes(850_000), partition=0)
            producer.flush()
        with contextlib.closing(client.reader()) as reader:
            assert len(list(read_range(reader, {scores: 0}, {scores: count}))) == count
