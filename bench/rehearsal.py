"""Disasters, rehearsed: real Kafka and Redis on this machine, two workers, traffic all the while.

Run by `make rehearsal`. After each disaster it waits until the group has done everything that was published up to a
second after it, and says how long that took. At the end `riskstream audit` counts: every event must have exactly one
outcome. Exit code 1 when it has not, or when something did not recover. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
import yaml

from stream.app import connect
from stream.config import load_settings
from stream.demo.children import Child, WorkerProcess
from stream.kafka.port import TopicPartition
from stream.stack import ApacheKafka, RedisServer
from stream.topics import create_topics, plan_topics

PARTITIONS = 4
PATIENCE_S = 300.0
Disaster = tuple[str, Callable[["Site"], None]]


class Site:
    """The servers, the workers and the traffic."""

    def __init__(self, folder: Path, cleanup: contextlib.ExitStack, *, rate: int) -> None:
        self.folder, self._cleanup = folder, cleanup
        self.kafka, self.redis = ApacheKafka(folder / "kafka"), RedisServer(folder / "redis")
        for server in (self.kafka, self.redis):
            cleanup.callback(server.kill)
            server.start()
        self.file = folder / "riskstream.yaml"
        self._started = 0
        self.write_settings()
        self.settings = load_settings(self.file, {}, {}).settings
        self.client = connect(self.settings)
        with contextlib.closing(self.client.admin()) as admin:
            create_topics(admin, plan_topics(self.settings, partitions=PARTITIONS))
        self.workers = [self.start_worker(name) for name in ("worker-0", "worker-1")]
        self.wait_ready()
        # It outlives the brokers' absence: the client asks again for as long as it takes.
        self.traffic = Child(folder / "traffic", ["--config", str(self.file), "simulate", "--rate", str(rate)])
        cleanup.callback(self.traffic.kill)
        self.traffic.launch()

    def write_settings(self) -> None:
        given = {
            "kafka": {"bootstrap_servers": self.kafka.address, "session_timeout_ms": 6_000},
            "redis": {"url": self.redis.url},
            "log": {"format": "json"},
        }
        self.file.write_text(yaml.safe_dump(given), encoding="utf-8")

    def start_worker(self, name: str) -> WorkerProcess:
        self._started += 1
        worker = WorkerProcess(self.folder / f"{name}-{self._started}", self.file, name)
        self._cleanup.callback(worker.kill)
        worker.launch()
        return worker

    def wait_ready(self) -> None:
        until(lambda: all(worker.is_ready() for worker in self.workers), "the workers are ready")

    def ends(self) -> dict[TopicPartition, int]:
        """Where the inputs end now."""
        with contextlib.closing(self.client.reader()) as reader:
            topics = (self.settings.topics.transactions, self.settings.topics.labels)
            return {
                tp: reader.end_offset(tp) for t in topics for tp in (TopicPartition(t, n) for n in range(PARTITIONS))
            }

    def wait_done(self, ends: dict[TopicPartition, int]) -> None:
        """Until the group has committed everything below these ends."""
        with contextlib.closing(self.client.admin()) as admin:

            def is_done() -> bool:
                found = admin.last_committed(self.settings.kafka.group, list(ends))
                return all(end == 0 or (tp in found and found[tp].offset >= end) for tp, end in ends.items())

            until(is_done, "the group has done what was published")

    def audit(self) -> dict[str, Any]:
        command = [sys.executable, "-m", "stream.cli", "--config", str(self.file), "audit", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not done.stdout:
            raise RuntimeError(done.stderr)
        report: dict[str, Any] = json.loads(done.stdout)
        return report | {"holds": done.returncode == 0}


def until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE_S:.0f} s: {what}")
        time.sleep(0.2)


# --- what goes wrong


def worker_killed(site: Site) -> None:
    """kill -9; it stays away, and the other one takes over."""
    site.workers.pop().kill()


def worker_returns(site: Site) -> None:
    site.workers.append(site.start_worker("worker-1"))
    site.wait_ready()


def workers_killed(site: Site) -> None:
    """All at once; they come back under their ids."""
    for worker in site.workers:
        worker.kill()
    site.workers = [site.start_worker(worker.worker_id) for worker in site.workers]


def workers_replaced(site: Site) -> None:
    """A rolling upgrade: SIGTERM, the next version under the same id, on when it is ready."""
    for place, worker in enumerate(site.workers):
        worker.stop()
        site.workers[place] = site.start_worker(worker.worker_id)
        site.wait_ready()


def redis_wiped(site: Site) -> None:
    with redis.Redis.from_url(site.redis.url) as client:
        client.flushall()


def redis_lost(site: Site) -> None:
    """The machine is gone: five seconds later an empty one answers at its address."""
    site.redis.kill()
    time.sleep(5.0)
    for file in site.redis.data.iterdir():
        if file.suffix in {".rdb", ".aof"} or file.name == "appendonlydir":
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    site.redis.start()


def kafka_killed(site: Site) -> None:
    """kill -9 of the only broker; it comes back with its log."""
    site.kafka.kill()
    time.sleep(3.0)
    site.kafka.start(PATIENCE_S)


DISASTERS: tuple[Disaster, ...] = (
    ("a worker is killed and stays away", worker_killed),
    ("it comes back", worker_returns),
    ("Redis loses everything", redis_wiped),
    ("Redis dies, an empty one takes its place", redis_lost),
    ("all workers are killed at once", workers_killed),
    ("the broker is killed and comes back", kafka_killed),
    ("rolling upgrade of all workers", workers_replaced),
)


def rehearse(rate: int, pause_s: float) -> dict[str, Any]:
    """The whole rehearsal. TimeoutError when something does not recover."""
    rows = []
    with contextlib.ExitStack() as cleanup:
        folder = Path(tempfile.mkdtemp(prefix="riskstream-rehearsal-"))
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        site = Site(folder, cleanup, rate=rate)
        print(f"{'disaster':<44} {'everything done again after':>28}", flush=True)
        for name, strike in DISASTERS:
            time.sleep(pause_s)
            began = time.monotonic()
            strike(site)
            time.sleep(1.0)
            site.wait_done(site.ends())
            rows.append({"disaster": name, "seconds": round(time.monotonic() - began, 1)})
            print(f"{name:<44} {rows[-1]['seconds']:>26.1f} s", flush=True)
        site.traffic.stop()
        site.wait_done(site.ends())
        report = site.audit()
    return {"rate": rate, "disasters": rows, "audit": report}


def main() -> int:
    parser = argparse.ArgumentParser(description="Disasters, rehearsed on this machine.")
    parser.add_argument("--rate", type=int, default=100, help="events per second (100)")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds of quiet before each disaster (5)")
    options = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("RISKSTREAM_") and name != "RISKSTREAM_CACHE"]:
        del os.environ[name]  # settings of one's own have no place here
    found = rehearse(options.rate, options.pause)
    print(json.dumps(found))
    return 0 if found["audit"]["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
