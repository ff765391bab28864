"""The demo from start to end. Whatever ends it, nothing that it started stays."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream.app import connect, load_domain
from stream.audit import MEANINGS, Auditor, AuditReport
from stream.clock import SystemClock
from stream.config import Settings
from stream.demo.children import WorkerProcess
from stream.demo.model import bundle_for
from stream.demo.plan import Plan, write_rates, write_settings
from stream.demo.traffic import Traffic
from stream.demo.view import LiveView, Picture, PlainView, View
from stream.demo.watch import Seen, Watch
from stream.errors import UnavailableError
from stream.kafka.port import Admin, KafkaClient, TopicPartition
from stream.stack import KAFKA_KINDS, EmbeddedRedis, LocalServer, RedisServer
from stream.topics import create_topics, partition_counts, plan_topics

WORKERS = 2
_READY_TIMEOUT_S = 180.0
_DRAIN_TIMEOUT_S = 120.0
_READY_POLL_S = 0.1
_POLL_MS = 50
_ASK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Result:
    """What the demo came to: its last line, and its exit code."""

    document: Mapping[str, Any]
    ok: bool


@dataclass(frozen=True, slots=True)
class Engine:
    """What runs."""

    settings: Settings
    client: KafkaClient
    admin: Admin
    partitions: Mapping[str, int]
    workers: tuple[WorkerProcess, ...]
    account_field: str


def run_demo(plan: Plan, *, kafka: str, seconds: float | None, terminal: bool, stop: threading.Event) -> Result:
    """Blocks until `seconds` of traffic have passed or `stop` is set, and all is scored and audited.

    ConfigError: something is not installed. UnavailableError: something did not start, or ended by itself.
    """
    view: View = LiveView("riskstream demo") if terminal else PlainView()
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(view.close)
        folder = Path(tempfile.mkdtemp(prefix="riskstream-demo-"))
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        servers = _start_servers(kafka, folder, view, cleanup)
        engine = _start_engine(plan, servers, folder, view, stop, cleanup)
        if engine is None:
            return _result(None, Seen(), 0.0)
        show = _Show(plan, engine, view, stop, cleanup)
        show.play(seconds)
        view.close()
        return show.finish()


def _start_servers(
    kind: str, folder: Path, view: View, cleanup: contextlib.ExitStack
) -> tuple[LocalServer, LocalServer]:
    """Kafka and Redis on free loopback ports, side by side."""
    redis = EmbeddedRedis if EmbeddedRedis.missing() is None else RedisServer
    servers: tuple[LocalServer, LocalServer] = (KAFKA_KINDS[kind](folder / "kafka"), redis(folder / "redis"))
    view.say(f"starting Kafka ({kind}) and Redis on free ports of this machine")
    for server in servers:
        # Their data are thrown away, so nothing is gained by a clean end.
        cleanup.callback(server.kill)
        server.launch()
    for server in servers:
        server.wait_ready(_READY_TIMEOUT_S)
    return servers


def _start_engine(
    plan: Plan,
    servers: tuple[LocalServer, LocalServer],
    folder: Path,
    view: View,
    stop: threading.Event,
    cleanup: contextlib.ExitStack,
) -> Engine | None:
    """Model, topics, workers. None if stopped meanwhile."""
    domain, rates = load_domain(Settings()), write_rates(folder)
    view.say("a model: trained on simulated payments the first time (about a minute), then kept")
    bundle = bundle_for(plan, domain, rates, folder, stop)
    if bundle is None or stop.is_set():
        return None
    kafka, redis = servers
    file, settings = write_settings(
        folder, bootstrap=kafka.address, redis_url=redis.address, bundle=bundle, rates=rates
    )
    client = connect(settings)
    admin = client.admin()
    cleanup.callback(admin.close)
    create_topics(admin, plan_topics(settings))
    view.say(f"starting {WORKERS} workers with the model {bundle}")
    workers = tuple(WorkerProcess(folder / name, file, name) for name in (f"worker-{n}" for n in range(WORKERS)))
    for worker in workers:
        cleanup.callback(worker.kill)
        worker.launch()
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while not all(worker.is_ready() for worker in workers):
        if stop.wait(_READY_POLL_S):
            return None
        if time.monotonic() > deadline:
            slow = next(worker for worker in workers if not worker.is_ready())
            raise UnavailableError(f"{slow.worker_id} was not ready in {_READY_TIMEOUT_S:.0f} s; {slow.last_words()}")
    return Engine(settings, client, admin, partition_counts(admin, settings), workers, domain.account_field)


class _Show:
    """The traffic and those who watch it."""

    def __init__(
        self, plan: Plan, engine: Engine, view: View, stop: threading.Event, cleanup: contextlib.ExitStack
    ) -> None:
        self._engine, self._view, self._stop = engine, view, stop
        clock, settings = SystemClock(), engine.settings
        self._reader = engine.client.reader()
        cleanup.callback(self._reader.close)
        self._watch = Watch(self._reader, settings.topics, engine.partitions, clock)
        producer = engine.client.plain_producer()
        cleanup.callback(producer.close)
        self._traffic = Traffic(plan, plan.simulation(clock.now_ms()), settings, producer, clock)
        cleanup.callback(self._traffic.stop)
        self._started, self._asked, self._duplicates = time.monotonic(), 0.0, 0
        self._seconds = 0.0

    def play(self, seconds: float | None) -> None:
        """Warm-up, live traffic until the time is over or stopped, then until all of it is scored."""
        end = self._started + seconds if seconds is not None else float("inf")
        self._traffic.warm_up(self._engine.account_field)
        self._turn("warming up", end, lambda: self._stop.is_set() or (self._traffic.is_done and self._all_done()))
        if not self._stop.is_set() and time.monotonic() < end:
            self._traffic.live()
            self._turn("live", end, self._stop.is_set)
        self._traffic.stop()
        limit = time.monotonic() + _DRAIN_TIMEOUT_S
        self._turn("finishing", limit, lambda: self._all_done() and self._watch.has_read_all())
        self._seconds = time.monotonic() - self._started
        self._ask_workers(at_once=True)
        self._view.show(self._picture("done"), at_once=True)

    def finish(self) -> Result:
        """Workers ended in good order, then the audit."""
        self._view.say("stopping the workers, then auditing the topics")
        for worker in self._engine.workers:
            worker.stop()
        settings = self._engine.settings
        report = Auditor(self._reader, settings.topics, self._engine.partitions).run()
        for problem, count in report.findings.counts.items():
            places = ", ".join(report.findings.examples[problem])
            self._view.say(f"{problem}: {count:,} ({MEANINGS[problem]}), such as {places}")
        codes = [worker.exit_code for worker in self._engine.workers]
        if any(codes):
            self._view.say(f"the workers ended with exit codes {codes}, not 0")
        result = _result(report, self._watch.seen, self._seconds)
        return Result(result.document, result.ok and not any(codes))

    def _turn(self, doing: str, end: float, is_over: Callable[[], bool]) -> None:
        """Watches and shows until it is over, or `end` (monotonic seconds). Errors of workers and traffic end it."""
        while time.monotonic() < end and not is_over():
            self._watch.poll(_POLL_MS)
            for worker in self._engine.workers:
                worker.require_running()
            if self._traffic.failure is not None:
                raise self._traffic.failure
            self._ask_workers()
            self._view.show(self._picture(doing))

    def _all_done(self) -> bool:
        """Whether the workers have committed everything that was published."""
        topic = self._engine.settings.topics.transactions
        partitions = [TopicPartition(topic, number) for number in range(self._engine.partitions[topic])]
        committed = self._engine.admin.last_committed(self._engine.settings.kafka.group, partitions)
        ends = {tp: self._reader.end_offset(tp) for tp in partitions}
        return all(end == 0 or (tp in committed and committed[tp].offset >= end) for tp, end in ends.items())

    def _ask_workers(self, *, at_once: bool = False) -> None:
        """Duplicates have no output; the workers' own counters tell how many there were."""
        if at_once or time.monotonic() - self._asked >= _ASK_EVERY_S:
            self._asked = time.monotonic()
            self._duplicates = sum(worker.outcomes().get("duplicate", 0) for worker in self._engine.workers)

    def _picture(self, doing: str) -> Picture:
        seen = self._watch.seen
        return Picture(
            doing=doing,
            seconds=time.monotonic() - self._started,
            events=self._traffic.events,
            labels=self._traffic.labels,
            scored=seen.scored,
            duplicates=self._duplicates,
            dead=seen.dead,
            alerts=seen.alerts,
            events_per_s=self._watch.scored_per_s(),
            p50_ms=self._watch.recent_latency_ms(0.50),
            p99_ms=self._watch.recent_latency_ms(0.99),
            bands=self._watch.bands(),
            last_alerts=tuple(seen.last_alerts),
        )


def _result(report: AuditReport | None, seen: Seen, seconds: float) -> Result:
    """The last line. Counts are the audit's, latency is what a consumer of the scores saw."""
    scored, alerts = (report.total("scored"), report.alerts) if report is not None else (0, 0)
    holds = report is not None and report.identity_holds
    document = {
        "events": report.total("events") if report is not None else 0,
        "scored": scored,
        "duplicates": report.total("duplicates") if report is not None else 0,
        "dead": report.total("dead") if report is not None else 0,
        "alerts": alerts,
        "identity_holds": holds,
        "latency_ms": {"p50": seen.latencies.percentile(0.50), "p99": seen.latencies.percentile(0.99)},
        "events_per_s": round(scored / seconds, 1) if seconds > 0 else 0.0,
        "seconds": round(seconds, 1),
    }
    return Result(document, ok=report is not None and scored > 0 and alerts > 0 and holds and report.exactly_once)
