"""`make bench-takeover`: how long nobody scores a partition after its worker was killed.

Two workers on real Kafka and Redis share many warm accounts. One is killed with SIGKILL, again and again, every
second time while its transaction is open; measured is the time to the first score of the other one on each lost
partition, as a read_committed consumer sees it, and what it consists of by the survivor's log:

    detection   from the kill to the assignment: the session's end, and the group's rebalance
    fencing     from there to the plan of the restore: claim, end of the dead worker's transaction, committed offset
    restore     from there until the partition runs
    turn        from there until the first event is scored
    delivery    from there until the consumer has it: the commit and a fetch

The warm rows are made by the engine: one event per account is published, the group's offsets are moved behind them,
and the workers rebuild the state from the log into Redis. A line per kill, a table, and JSON as the last line.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import redis as vendor
from confluent_kafka import OFFSET_END, Consumer, TopicPartition
from kafka import TopicPartition as VendorPartition
from kafka.admin import KafkaAdminClient, OffsetSpec
from kafka.errors import RetriableError
from kafka.structs import OffsetAndMetadata

from bench.job import PARTITIONS
from bench.long import on_servers, parser, payments, say
from bench.processes import Child, Deployment, WorkerProcess, python, wait_ready
from stream.events.moments import moments_ms

PHASES = ("detection", "fencing", "restore", "turn", "delivery", "first_score")
BAR_S = 2.0
"""The goal: the first score within the session timeout and so much."""
TRANSACTION_TIMEOUT_MS = 60_000
"""Were a dead worker's transaction not fenced, everybody would wait for it so long."""
_POINT = "turn:inside_commit"
_LOADED_S = 1_800.0
_PATIENCE_S = 180.0


class Worker(WorkerProcess):
    """A worker that stands still inside a commit once its file is there."""

    def __init__(self, deployment: Deployment, number: int) -> None:
        self.halt = deployment.folder / f"halt-{number}-{time.monotonic_ns()}"
        self.program = ["tests.broker.faulty_worker", _POINT, "halt", str(self.halt)]
        super().__init__(deployment.environment, deployment.folder, number)

    def command(self, port: int, name: str) -> list[str]:
        return python(*self.program, "run", "--http-port", port, "--worker-id", name)

    def lines(self, message: str, since_s: float = 0.0) -> list[dict[str, Any]]:
        """Log lines with this message, each with its time in seconds."""
        found = []
        for line in self.log_file.read_text().splitlines():
            if line.startswith("{") and line.endswith("}"):
                content = json.loads(line)
                content["at"] = datetime.fromisoformat(content["time"]).timestamp()
                if content["message"] == message and content["at"] >= since_s:
                    found.append(content)
        return found

    @property
    def partitions(self) -> list[int]:
        """What it was assigned last."""
        assigned = self.lines("assigned")
        return list(assigned[-1]["partitions"]) if assigned else []


@dataclass
class Watch:
    """Reads the scores as everybody does, and notes when each partition's came."""

    bootstrap: str
    stop: threading.Event = field(default_factory=threading.Event)
    seen: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    """Partition -> (arrived, scored), seconds."""

    def run(self) -> None:
        options = {"bootstrap.servers": self.bootstrap, "group.id": "watch", "isolation.level": "read_committed"}
        consumer = Consumer(options | {"enable.auto.commit": False, "fetch.wait.max.ms": 20, "log_level": 0})
        consumer.assign([TopicPartition("risk-scores", number, OFFSET_END) for number in range(PARTITIONS)])
        while not self.stop.is_set():
            for message in consumer.consume(1_000, 0.05):
                if message.error() is None:
                    scored = moments_ms([orjson.loads(message.value())["scored_at"]])[0] / 1000
                    self.seen.setdefault(message.partition(), []).append((time.time(), float(scored)))
        consumer.close()

    def first_after(self, partition: int, moment_s: float) -> tuple[float, float] | None:
        """When the first score that was made after the moment arrived, and when it was made."""
        return next((found for found in self.seen.get(partition, []) if found[1] > moment_s), None)


def main(arguments: list[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    settings = {
        "kafka__session_timeout_ms": options.session_timeout_ms,
        "kafka__transaction_timeout_ms": TRANSACTION_TIMEOUT_MS,
        "state__rebuild_max_events": 10**9,
    }
    with on_servers("takeover", options.bundle, **settings) as deployment:
        print(json.dumps(measure(deployment, options)))
    return 0


def _options() -> argparse.ArgumentParser:
    made = parser("takeover", __doc__)
    made.add_argument("--accounts", type=int, default=1_000_000, help="warm accounts; default 1,000,000")
    made.add_argument("--kills", type=int, default=10)
    made.add_argument("--rate", type=float, default=200.0, help="events a second while workers die")
    made.add_argument("--session-timeout-ms", type=int, default=10_000, help="kafka.session_timeout_ms")
    return made


def measure(deployment: Deployment, options: argparse.Namespace) -> dict[str, Any]:
    """Warms up, kills, and returns the figures."""
    workers: list[Worker] = []
    try:
        warm = warm_up(deployment, workers, options.accounts, options.seed)
        watch = Watch(deployment.kafka.bootstrap)
        thread = threading.Thread(target=watch.run, daemon=True)
        thread.start()
        with load(deployment, options):
            found = [kill(deployment, workers, watch, number, options) for number in range(options.kills)]
        watch.stop.set()
        thread.join()
    finally:
        for worker in workers:
            worker.__exit__(None, None, None)
    return report(warm, options.session_timeout_ms / 1000, found)


def warm_up(deployment: Deployment, workers: list[Worker], accounts: int, seed: int) -> int:
    """One event per account, folded by the workers' rebuild and flushed; returns the account rows in Redis."""
    say(f"publishing an event of each of {accounts:,} accounts")
    deployment.publish(list(payments(accounts, accounts, seed, int(time.time() * 1000) - 60_000)))
    _move_offsets_to_the_end(deployment)
    started = time.monotonic()
    workers[:] = [Worker(deployment, number) for number in range(2)]
    while not all(worker.is_ready() for worker in workers):
        left = sum(v for w in workers for n, v in w.metrics().items() if n.startswith("riskstream_restore_remaining"))
        say(f"  the workers fold them: {left:,.0f} to go", every_s=10)
        time.sleep(0.5)
    _settle(workers)
    client: Any = vendor.Redis.from_url(deployment.redis.url)
    with contextlib.closing(client):
        rows = sum(1 for _ in client.scan_iter(match="*}:row:account:*", count=10_000))
        memory = client.info("memory")["used_memory"]
    say(f"{rows:,} account rows in Redis, {memory / 2**20:,.0f} MiB, made in {time.monotonic() - started:.0f} s")
    if rows < accounts:
        raise SystemExit(f"{accounts - rows:,} accounts have no row in Redis")
    return rows


def _move_offsets_to_the_end(deployment: Deployment) -> None:
    admin = KafkaAdminClient(bootstrap_servers=deployment.kafka.bootstrap)
    inputs = [VendorPartition(topic, number) for topic in ("transactions", "labels") for number in range(PARTITIONS)]
    ends = admin.list_partition_offsets(dict.fromkeys(inputs, OffsetSpec.LATEST))
    moved = {tp: OffsetAndMetadata(end.offset, "", -1) for tp, end in ends.items()}
    _until(lambda: _is_moved(admin, moved), "the group's offsets are moved")
    admin.close()


def _is_moved(admin: KafkaAdminClient, offsets: dict[VendorPartition, OffsetAndMetadata]) -> bool:
    """A new cluster has no coordinator for a second or so, and says so in an error or in its answer."""
    try:
        admin.alter_group_offsets("bench", offsets)
        found = admin.list_group_offsets({"bench": list(offsets)})["bench"]
    except RetriableError:
        return False
    return all(found[tp].offset == moved.offset for tp, moved in offsets.items())


@contextlib.contextmanager
def load(deployment: Deployment, options: argparse.Namespace) -> Iterator[None]:
    """Open-loop traffic of the warm accounts beside it all."""
    file = deployment.folder / "messages"
    count, now_ms = int(options.rate * _LOADED_S), int(time.time() * 1000)
    file.write_bytes(b"\n".join(b"\t".join(one) for one in payments(options.accounts, count, options.seed + 1, now_ms)))
    command = python("bench.helpers.load", deployment.kafka.bootstrap, file, options.rate, _LOADED_S)
    with Child(command, {}, deployment.folder / "load.log"):
        yield


def kill(
    deployment: Deployment, workers: list[Worker], watch: Watch, number: int, options: argparse.Namespace
) -> dict[int, dict[str, float]]:
    """Kills one worker, waits for the other's scores, and starts the first again. Figures by lost partition."""
    wait_ready(*workers)
    _settle(workers)
    time.sleep(random.Random(options.seed * 1_000 + number).uniform(2.0, 4.0))
    victim, survivor = workers[number % 2], workers[1 - number % 2]
    lost, is_open = victim.partitions, number % 2 == 0
    if is_open:
        victim.halt.touch()
        _until(lambda: Path(f"{victim.halt}.reached").exists(), "the worker is inside its transaction")
        time.sleep(0.1)
    killed_s = time.time()
    os.kill(victim.pid, signal.SIGKILL)
    victim.process.wait()
    _until(lambda: all(watch.first_after(p, killed_s) for p in lost), "the survivor scores")
    found = {p: _phases(survivor, p, killed_s, watch.first_after(p, killed_s) or (0.0, 0.0)) for p in lost}
    last = max(found.values(), key=lambda figures: figures["first_score"])
    phases = ", ".join(f"{phase} {last[phase]:.2f}" for phase in PHASES[:-1])
    fenced = len(survivor.lines("ending the transaction of a dead worker", killed_s))
    say(
        f"kill {number + 1}: partitions {lost}, {'open transaction' if is_open else 'at a random moment'}, "
        f"{fenced} fenced, first score on the last of them after {last['first_score']:.2f} s ({phases})"
    )
    workers[number % 2] = Worker(deployment, victim.number)
    return found


def _phases(survivor: Worker, partition: int, killed_s: float, first: tuple[float, float]) -> dict[str, float]:
    arrived_s, scored_s = first
    assigned = next(line["at"] for line in survivor.lines("assigned", killed_s) if partition in line["partitions"])
    times = {
        message: next(line["at"] for line in survivor.lines(message, killed_s) if line["partition"] == partition)
        for message in ("restoring", "restored")
    }
    return {
        "detection": assigned - killed_s,
        "fencing": times["restoring"] - assigned,
        "restore": times["restored"] - times["restoring"],
        "turn": scored_s - times["restored"],
        "delivery": arrived_s - scored_s,
        "first_score": arrived_s - killed_s,
    }


def report(accounts: int, session_timeout_s: float, kills: list[dict[int, dict[str, float]]]) -> dict[str, Any]:
    """A table on stderr; the figures."""
    every = [figures for by_partition in kills for figures in by_partition.values()]
    found: dict[str, Any] = {"accounts": accounts, "session_timeout_s": session_timeout_s}
    say(f"\n{len(kills)} kills, {len(every)} lost partitions, {accounts:,} warm accounts; seconds after the kill")
    say(f"{'phase':<14}{'p50':>8}{'max':>8}")
    for phase in PHASES:
        values = [figures[phase] for figures in every]
        found[f"{phase}_s"] = {"p50": round(float(np.median(values)), 3), "max": round(max(values), 3)}
        say(f"{phase:<14}{found[f'{phase}_s']['p50']:>8.2f}{found[f'{phase}_s']['max']:>8.2f}")
    found["kills"], found["bar_s"] = len(kills), session_timeout_s + BAR_S
    found["holds"] = found["first_score_s"]["max"] <= found["bar_s"]
    say(f"bar: {found['bar_s']:.1f} s, {'held' if found['holds'] else 'MISSED'}")
    return found


def _settle(workers: list[Worker]) -> None:
    """Until the partitions are shared out."""
    _until(
        lambda: (
            sorted(p for worker in workers for p in worker.partitions) == list(range(PARTITIONS))
            and all(worker.partitions and worker.is_ready() for worker in workers)
        ),
        "both workers have partitions",
    )


def _until(done: Any, what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {_PATIENCE_S:.0f} s: {what}")
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
