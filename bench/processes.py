"""Child processes, their CPU time, and the servers and workers of a case."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import Producer

from bench.job import COMMAND, PARTITIONS, Job, riskstream, surroundings
from stream.stack import ApacheKafka, RedisServer
from stream.stack.process import HOST, free_port

_TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE_S = 600.0


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, its threads included; in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def resident_mib(pid: int) -> float:
    """The resident memory of a process."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


@dataclass(frozen=True, slots=True)
class Moment:
    """Where things stand: wall clock, events done, CPU seconds by process."""

    wall_s: float
    events: float
    cpu_s: dict[str, float]


def between(start: Moment, end: Moment) -> dict[str, float]:
    """Figures of a stretch: rate, and CPU microseconds an event by process."""
    events, wall = end.events - start.events, end.wall_s - start.wall_s
    figures = {"events": events, "wall_s": round(wall, 2), "events_per_s": round(events / wall, 1)}
    for name, used in end.cpu_s.items():
        figures[f"{name}_us"] = round((used - start.cpu_s[name]) / events * 1e6, 2)
    figures["events_per_cpu_s"] = round(events / (end.cpu_s["worker"] - start.cpu_s["worker"]), 1)
    return figures


class Child:
    """A process of the benchmark that ends with its `with` block."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                command, env=surroundings(environment), stdout=subprocess.PIPE, stderr=errors, text=True
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """SystemExit with the end of its log if it has ended."""
        if self.process.poll() is not None:
            raise SystemExit(f"{self._log.name} ended with {self.process.returncode}: {self._log.read_text()[-3000:]}")

    def finish(self, timeout_s: float = 60.0) -> str:
        """SIGTERM; returns what it wrote to stdout. SystemExit unless it ends with 0."""
        self.process.send_signal(signal.SIGTERM)
        output, _ = self.process.communicate(timeout=timeout_s)
        if self.process.returncode != 0:
            raise SystemExit(f"{self._log.name} ended with {self.process.returncode}: {self._log.read_text()[-3000:]}")
        return output

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class WorkerProcess(Child):
    """`riskstream run`."""

    def __init__(self, environment: dict[str, str], folder: Path, number: int = 0) -> None:
        self.port = free_port()
        self.number = number
        name = f"worker-{number}"
        self.log_file = folder / f"{name}-{time.monotonic_ns()}.log"
        super().__init__(self.command(self.port, name), environment, self.log_file)

    def command(self, port: int, name: str) -> list[str]:
        return [*COMMAND, "run", "--profile", "--http-port", str(port), "--worker-id", name]

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name and labels; empty while the worker starts."""
        self.check()
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/metrics", timeout=10) as answer:
                text = answer.read().decode()
        except (urllib.error.URLError, ConnectionError):
            return {}
        samples = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in samples}

    def is_ready(self) -> bool:
        self.check()
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/readyz", timeout=10) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False

    def events(self, metrics: dict[str, float]) -> float:
        return sum(value for name, value in metrics.items() if name.startswith("riskstream_events_in_total"))


@dataclass
class Deployment:
    """Kafka and Redis of one case, and what leads to them."""

    job: Job
    kafka: ApacheKafka
    redis: RedisServer
    folder: Path
    overrides: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **self.job.scoring,
            "RISKSTREAM_KAFKA__BOOTSTRAP_SERVERS": self.kafka.bootstrap,
            "RISKSTREAM_REDIS__URL": self.redis.url,
            "RISKSTREAM_KAFKA__GROUP": "bench",
            **self.overrides,
        }

    def worker(self, number: int = 0, **settings: object) -> WorkerProcess:
        extra = {f"RISKSTREAM_{name.upper()}": str(value) for name, value in settings.items()}
        return WorkerProcess(self.environment | extra, self.folder, number)

    def producer(self, *, linger_ms: int = 5) -> Producer:
        """Of the inputs, keyed as a source keys them."""
        return Producer(
            {
                "bootstrap.servers": self.kafka.bootstrap,
                "partitioner": "murmur2_random",
                "linger.ms": linger_ms,
                "queue.buffering.max.messages": 2_000_000,
                "log_level": 0,
            }
        )

    def publish(self, messages: Sequence[tuple[bytes, bytes]], topic: str = "transactions") -> float:
        """Publishes as fast as it can; returns the seconds of CPU that it took."""
        started = time.process_time()
        producer = self.producer(linger_ms=20)
        for key, value in messages:
            producer.produce(topic, value, key)
        producer.flush()
        return time.process_time() - started

    def moment(self, *workers: WorkerProcess) -> Moment:
        """Where the workers stand now."""
        metrics = [worker.metrics() for worker in workers]
        cpu = {
            "worker": sum(values.get("process_cpu_seconds_total", 0.0) for values in metrics),
            "kafka": cpu_s(self.kafka.process.pid) if self.kafka.process else 0.0,
            "redis": cpu_s(self.redis.process.pid) if self.redis.process else 0.0,
        }
        events = sum(worker.events(values) for worker, values in zip(workers, metrics, strict=True))
        return Moment(time.monotonic(), events, cpu)

    def until(self, events: float, *workers: WorkerProcess) -> Moment:
        """The first moment at which so many events are done."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            moment = self.moment(*workers)
            if moment.events >= events:
                return moment
            if time.monotonic() > deadline:
                raise SystemExit(f"the worker stands at {moment.events:,.0f} of {events:,.0f} events")
            # Each look costs the worker some milliseconds.
            time.sleep(0.5)


@contextlib.contextmanager
def deployed(job: Job, name: str, *, partitions: int = PARTITIONS, **overrides: object) -> Iterator[Deployment]:
    """Servers of this case alone, with their topics."""
    folder = job.folder / f"{name}-{time.monotonic_ns()}"
    folder.mkdir()
    extra = {f"RISKSTREAM_{key.upper()}": str(value) for key, value in overrides.items()}
    with ApacheKafka(folder / "kafka") as kafka, RedisServer(folder / "redis") as redis:
        deployment = Deployment(job, kafka, redis, folder, extra)
        riskstream(["topics", "create", "--partitions", str(partitions)], deployment.environment)
        yield deployment


def wait_ready(*workers: WorkerProcess) -> None:
    """Until every worker has partitions that run."""
    deadline = time.monotonic() + PATIENCE_S
    while not all(worker.is_ready() for worker in workers):
        if time.monotonic() > deadline:
            raise SystemExit("a worker does not become ready")
        time.sleep(0.1)


def python(module: str, *arguments: object) -> list[str]:
    """The command of a helper module."""
    return [sys.executable, "-m", module, *map(str, arguments)]
