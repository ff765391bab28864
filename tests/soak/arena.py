"""The field of a soak: servers, topics, worker slots, and what is noticed while it runs."""

from __future__ import annotations

import itertools
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from stream.errors import RiskstreamError
from stream.kafka.port import TopicPartition
from tests.broker.harness import Deployment
from tests.checker import checks
from tests.checker.readers import GroupReader, StateReader
from tests.soak.servers import SoakKafka, SoakRedis
from tests.soak.traffic import Publisher
from tests.soak.workers import ForkedWorker, Zygote

PARTITIONS = 8
WORKERS = 3
FENCED = 10
STUCK_S = 180.0

SETTINGS = {
    "kafka__session_timeout_ms": 3_000,
    "kafka__heartbeat_interval_ms": 500,
    "kafka__transaction_timeout_ms": 10_000,
    "kafka__request_timeout_ms": 10_000,
    "batch__max_events": 64,
    "batch__max_wait_ms": 50,
    "redis__timeout_ms": 500,
    "state__arena_accounts": 2_048,
    "state__arena_entities": 2_048,
    "state__flush_interval_ms": 600,
    "records__features": "sample",
    "records__sample_rate": 0.25,
}
"""Small turns and short waits: more of them happen in an hour."""


@dataclass(frozen=True, slots=True)
class Kill:
    """A worker that died: when (ms since the epoch), and which partitions it held."""

    at_ms: float
    partitions: list[int]
    fault: str


@dataclass(slots=True)
class Slot:
    """A place for a worker; a supervisor would start another one when it ends."""

    worker_id: str
    worker: ForkedWorker


@dataclass
class Seen:
    """What was counted and what was found wrong, while running."""

    faults: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    kills: list[Kill] = field(default_factory=list)
    outages: list[tuple[float, float]] = field(default_factory=list)
    fenced: int = 0
    complaints: list[str] = field(default_factory=list)
    committed: int = 0


class Arena:
    """Owns everything that runs. A context manager: whatever it started ends with it."""

    def __init__(self, folder: Path, zygote: Zygote, *, name: str = "soak", disk: bool = True, **settings: object):
        """`disk`: the broker gets a file system of its own, which can be filled."""
        self.folder, self.zygote, self.name = folder, zygote, name
        folder.mkdir(parents=True, exist_ok=True)
        self.kafka = SoakKafka(folder / "kafka")
        if disk:
            self.kafka.mount()
        self.kafka.start()
        self.redis = SoakRedis(folder)
        self.deployment = Deployment(
            self.kafka, self.redis.server, name, folder / "workers", partitions=PARTITIONS, **{**SETTINGS, **settings}
        ).create_topics()
        self.group = GroupReader(self.kafka.bootstrap, name)
        self.state = StateReader(self.redis.url, self.deployment.settings.state_namespace)
        self.slots: list[Slot] = []
        self.seen = Seen()
        self.publisher: Publisher | None = None
        self.plants: list[str] = []
        self._numbers = itertools.count()
        self._once_committed: dict[tuple[str, int], int] = {}
        self.on_step: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for slot in self.slots:
            slot.worker.kill()
        if self.publisher is not None:
            self.publisher.abandon()
        self.redis.close()
        self.kafka.kill()
        self.kafka.unmount()

    # --- workers

    def new_id(self) -> str:
        return f"w{next(self._numbers)}"

    def spawn(self, worker_id: str, **settings: object) -> ForkedWorker:
        """A worker that is starting."""
        deployment = self.deployment
        given = deployment.overrides(kafka__worker_id=worker_id, **settings)
        worker = ForkedWorker(self.zygote, deployment.folder_for(worker_id), given, plants=self.plants)
        deployment.workers.append(worker)
        worker.launch()
        return worker

    def start_workers(self, count: int = WORKERS) -> None:
        self.slots = [Slot(worker_id, self.spawn(worker_id)) for worker_id in (self.new_id() for _ in range(count))]

    def respawn(self, slot: Slot, *, same_id: bool = True) -> None:
        """A supervisor starts the next worker in this place."""
        slot.worker_id = slot.worker_id if same_id else self.new_id()
        slot.worker = self.spawn(slot.worker_id)

    def supervise(self, *allowed: int) -> None:
        """Starts anew whoever has ended by itself; a code that is not allowed is a complaint."""
        for slot in self.slots:
            code = slot.worker.exit_code
            if code is None:
                continue
            self.seen.fenced += code == FENCED
            if code not in (FENCED, *allowed):
                self.complain(f"{slot.worker_id} ended with {code}: {slot.worker.output()[-1500:]}")
            self.respawn(slot)

    def stop_workers(self) -> None:
        """SIGTERM for all; a complaint for whoever does not end with 0."""
        self.supervise()
        for slot in self.slots:
            slot.worker.send(signal.SIGTERM)
        for slot in self.slots:
            code = slot.worker.wait_exit(STUCK_S)
            if code == FENCED:
                self.seen.fenced += 1
            elif code != 0 and not (code == -signal.SIGTERM and not slot.worker.logs("started")):
                # Before it has started, SIGTERM ends it as it would end any process.
                self.complain(f"{slot.worker_id} ended with {code} on SIGTERM: {slot.worker.output()[-1500:]}")
        self.slots = []

    def killed(self, slot: Slot, fault: str) -> None:
        """Notes a death that a fault has caused."""
        code = slot.worker.wait_exit()
        if code != -signal.SIGKILL:
            self.complain(f"{slot.worker_id} was to be killed and ended with {code}: {slot.worker.output()[-1500:]}")
        self.seen.kills.append(Kill(time.time() * 1000, held_by(slot.worker), fault))

    # --- looking

    def complain(self, text: str) -> None:
        self.seen.complaints.append(text)

    def committed(self) -> dict[tuple[str, int], int] | None:
        """The group's offsets; None while Kafka does not answer."""
        topics = self.deployment.topics
        try:
            found = self.deployment.committed()
        except RiskstreamError:
            return None
        now = {(tp.topic, tp.partition): where.offset for tp, where in found.items()}
        for where, offset in now.items():
            self._once_committed[where] = max(offset, self._once_committed.get(where, 0))
        self.seen.committed = sum(offset for (topic, _), offset in now.items() if topic == topics.transactions)
        return now

    def check_rows(self) -> None:
        """Invariant 1: no row in Redis is ahead of what is committed (read afterwards).

        What was seen committed once stays so, though a coordinator that is loading answers with less (ADR 0011). And
        a commit is decided before its marker is in the group's log: who asks in between must wait for it.
        """
        rows = self.state.rows()
        if self.committed() is None:
            return
        topics = checks.Topics(*(getattr(self.deployment.topics, name) for name in checks.Topics._fields))
        if checks.rows_ahead(rows, self._once_committed, topics):
            for where, offset in self.deployment.stable_committed().items():
                self._once_committed[where] = max(offset, self._once_committed.get(where, 0))
        self.seen.complaints += checks.rows_ahead(rows, self._once_committed, topics)

    def wait_until(self, done: Callable[[], bool], what: str, timeout_s: float = STUCK_S, *allowed: int) -> bool:
        """Waits, supervising; a complaint when it takes too long."""
        deadline = time.monotonic() + timeout_s
        wrong = len(self.seen.complaints)
        while not done():
            self.supervise(*allowed)
            self.on_step()
            if len(self.seen.complaints) > wrong:
                return False
            if time.monotonic() > deadline:
                trouble = self.publisher.trouble[-3:] if self.publisher is not None else []
                self.complain(
                    f"stuck: not within {timeout_s:.0f} s: {what}; committed {self.committed()}; traffic: {trouble}"
                )
                return False
            time.sleep(0.05)
        return True

    def wait_progress(self, *allowed: int) -> bool:
        """Until every partition has committed more transactions than now."""
        topic = self.deployment.topics.transactions
        before: dict[tuple[str, int], int] = {}

        def gone_on() -> bool:
            now = self.committed()
            if now is None:
                return False
            if not before:
                before.update({(topic, number): now.get((topic, number), 0) for number in range(PARTITIONS)})
            return all(now.get(where, 0) > offset for where, offset in before.items())

        return self.wait_until(gone_on, "every partition goes on", STUCK_S, *allowed)

    def wait_done(self) -> bool:
        """Until the group stands at the end of both inputs. The last record of each partition must be a plain one."""
        return self.wait_until(self._is_done, "everything is committed")

    def _is_done(self) -> bool:
        try:
            return self.deployment.is_done()
        except RiskstreamError:
            return False

    def inputs(self) -> list[TopicPartition]:
        topics = self.deployment.topics
        return [TopicPartition(topic, n) for topic in (topics.transactions, topics.labels) for n in range(PARTITIONS)]


def held_by(worker: ForkedWorker) -> list[int]:
    """The partitions of its last assignment, as its log says."""
    lines = worker.logs("assigned")
    return list(lines[-1]["partitions"]) if lines else []
