"""Workers over the in-memory ports, in one thread, turn by turn, with time that moves only when told to.

A crash is a test datum: at the n-th passing of a fault point the worker is killed (its object is left
alone: the member stays in the group until expelled, the producer keeps its transaction open), or held
while others take over, after which it goes on as a zombie.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry

from stream import app
from stream.clock import ManualClock
from stream.config import Settings, load_settings
from stream.engine.worker import Worker
from stream.errors import FencedError
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.kafka.port import CommittedOffset, Record, TopicPartition
from stream.metrics import Metrics
from stream.scoring.scorer import Scorer
from stream.state.memory import MemoryServer, MemoryStore
from tests.checker import checks as checker
from tests.crash.small import DOMAIN, FormulaScorer
from tests.crash.traffic import START_MS, Chunk

GROUP = "crash"
TOPICS = checker.Topics()
STEP_MS = 120

FAULT_POINTS = (
    "turn:after_poll",
    "turn:after_fold",
    "turn:after_produce",
    "turn:inside_commit",
    "turn:after_commit",
    "flush:after_chunk",
    "flush:after_accounts",
    "flush:after_entities",
    "flush:after",
    "restore:after_step",
    "restore:after_claim",
)


class Killed(BaseException):
    """kill -9. No handler of the engine may catch it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens the `hit`-th time (from 1) that any worker passes `point`.

    "kill": the worker dies; one of its id starts soon after. "replace": it dies, the group expels it, one of
    another id starts. "hold": the group expels it and the others work on, then it continues. "slow": the
    others work on while it stands, but it stays a member.
    """

    point: str
    hit: int
    act: str


class VirtualTime:
    """Stands in for the module `time` in the in-memory broker."""

    clock = ManualClock(START_MS)

    def monotonic(self) -> float:
        return self.clock.monotonic()


class VirtualBroker(MemoryBroker):
    """Whoever would wait lets the clock move on instead."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.virtual_clock = clock

    def wait_until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        if done() or timeout_s <= 0:
            return done()
        self.virtual_clock.advance_ms(math.ceil(timeout_s * 1000))
        self.abort_expired()
        return done()


@dataclass
class Slot:
    """A place for a worker process. `worker` None: dead, until `returns_at`, when one named `next_id` starts."""

    worker_id: str
    worker: Worker | None = None
    returns_at: int = 0
    next_id: str = ""
    held: bool = False
    stopped: int = 0
    """How often its worker ended with FencedError, as a process with an exit code would."""


class Cluster:
    """A broker, a store and workers. `given` overrides settings ("state.entity_scope": "own")."""

    def __init__(
        self,
        clock: ManualClock,
        *,
        partitions: int = 2,
        scorer: Callable[[], Scorer | None] = FormulaScorer,
        client: Callable[[MemoryBroker, Settings], MemoryKafka] = lambda broker, s: MemoryKafka(broker, s.kafka),
        given: Mapping[str, object] | None = None,
    ) -> None:
        self.clock, self.partitions = clock, partitions
        VirtualTime.clock = clock
        self.broker = VirtualBroker(clock)
        self.server = MemoryServer()
        for topic in TOPICS:
            self.broker.create_topic(topic, partitions=partitions)
        self._scorer, self._client = scorer, client
        self._given = {
            "kafka.group": GROUP,
            "kafka.max_poll_interval_ms": 20_000,
            "batch.max_events": 16,
            "batch.max_wait_ms": 2,
            "state.arena_accounts": 64,
            "state.arena_entities": 64,
            "state.entity_scope": "own",
            # Virtual time leaps at a crash: what is shed then differs from an undisturbed run.
            "scoring.deadline_ms": 0,
            "records.features": "all",
        } | dict(given or {})
        self.complaints: list[str] = []
        self.metrics: list[Metrics] = []

    def settings(self, worker_id: str) -> Settings:
        return load_settings(None, {}, {**self._given, "kafka.worker_id": worker_id}).settings

    def worker(self, worker_id: str, fault: Callable[[str], None] = lambda point: None) -> Worker:
        """A worker that has started: it joins the group in its first turn."""
        settings = self.settings(worker_id)
        store = MemoryStore(settings.state_namespace, DOMAIN.spec_id, self.server)
        metrics = Metrics(CollectorRegistry())
        self.metrics.append(metrics)
        worker = app.build_worker(
            settings, DOMAIN, self._client(self.broker, settings), store, metrics,
            scorer=self._scorer(), clock=self.clock, fault=fault,
        )  # fmt: skip
        worker.start()
        return worker

    # --- the log

    def publish(self, chunk: Chunk) -> None:
        """As a producer would; a transaction leaves a gap, an aborted one a larger gap."""
        client = MemoryKafka(self.broker)
        if chunk.end == "plain":
            for item in chunk.items:
                self.broker.append(item.topic, item.value, key=item.key, headers=item.headers)
            return
        producer = client.producer("upstream")
        producer.init_transactions()
        producer.begin()
        for item in chunk.items:
            producer.produce(item.topic, item.value, key=item.key, headers=item.headers)
        (producer.commit if chunk.end == "commit" else producer.abort)()

    def contents(self) -> checker.Contents:
        reader = MemoryKafka(self.broker).reader()

        def read_all(topic: str, partition: int) -> list[Record]:
            where = TopicPartition(topic, partition)
            reader.assign({where: reader.first_offset(where)})
            found: list[Record] = []
            while reader.position(where) < reader.end_offset(where):
                found.extend(reader.poll(10_000, 0).get(where, ()))
            return found

        return checker.read(read_all, range(self.partitions))

    def committed(self) -> dict[tuple[str, int], int]:
        """The group's offsets as they are now."""
        inputs = [TopicPartition(t, p) for t in (TOPICS.transactions, TOPICS.labels) for p in range(self.partitions)]
        found = MemoryKafka(self.broker).admin().last_committed(GROUP, inputs)
        return {(tp.topic, tp.partition): where.offset for tp, where in found.items()}

    def move_offsets(self, offsets: Mapping[tuple[str, int], CommittedOffset]) -> None:
        """What an operator does with a tool while no worker runs."""
        self.broker.group(GROUP).offsets.update({TopicPartition(*tp): where for tp, where in offsets.items()})

    def ends(self) -> dict[tuple[str, int], int]:
        """Behind the last record of every input partition that has one."""
        found = {}
        for topic in (TOPICS.transactions, TOPICS.labels):
            for partition in range(self.partitions):
                log = self.broker.log(TopicPartition(topic, partition))
                records, _ = log.read(log.first_offset, 10**9)
                if records:
                    found[topic, partition] = records[-1].offset + 1
        return found

    def drained(self) -> bool:
        committed = self.committed()
        return all(committed.get(where, 0) >= end for where, end in self.ends().items())

    def check_rows(self) -> None:
        """Invariant 1: no row in the store is ahead of what is committed."""
        self.complaints += checker.rows_ahead(self.server.rows, self.committed())


@dataclass
class Play:
    """One run of several workers over some traffic, with faults; `run` returns what the checker has to say."""

    cluster: Cluster
    seed: int
    chunks: Sequence[Chunk]
    faults: Sequence[Fault] = ()
    workers: int = 2
    happenings: Mapping[int, Callable[[Play], Any]] = field(default_factory=dict)
    """Step -> what else happens then: Redis goes away, a rebalance..."""
    limit: int = 3_000

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.slots = [Slot(f"w{i}") for i in range(self.workers)]
        self.passed: Counter[str] = Counter()
        self.struck: list[Fault] = []
        self.steps, self.published, self._fresh_ids = 0, 0, self.workers

    def run(self) -> list[str]:
        """Publishes all, lets the workers finish, and returns the complaints about the outcome."""
        for slot in self.slots:
            self._revive(slot)
        while not self._settled():
            assert self.steps < self.limit, f"not done after {self.limit} steps: {self.state()}"
            self._step()
        self.finish()
        cluster = self.cluster
        # A producer that died without offsets in its transaction is fenced by nobody: it times out.
        cluster.clock.advance_ms(120_000)
        return cluster.complaints + checker.complaints(cluster.contents(), cluster.committed())

    def finish(self) -> None:
        """SIGTERM for all, undisturbed."""
        self.faults = ()
        for slot in self.slots:
            if slot.worker is not None:
                slot.worker.finish()
                self.cluster.check_rows()

    def state(self) -> str:
        """Where everything stands, for a run that does not end."""
        held = [
            (s.worker_id, None if s.worker is None else (s.worker.assigned, s.worker.restoring())) for s in self.slots
        ]
        return f"committed {self.cluster.committed()}, ends {self.cluster.ends()}, workers {held}"

    def _settled(self) -> bool:
        if self.published < len(self.chunks) or self.steps <= max(self.happenings, default=0):
            return False
        alive = [slot.worker for slot in self.slots if slot.worker is not None]
        ready = len(alive) == len(self.slots) and not any(worker.restoring() for worker in alive)
        return ready and sum(w.assigned for w in alive) == self.cluster.partitions and self.cluster.drained()

    def _step(self, resting: Slot | None = None) -> None:
        """Somebody publishes, or one of the workers turns; time passes."""
        self.steps += 1
        self.cluster.clock.advance_ms(self.random.randrange(STEP_MS))
        if self.steps in self.happenings:
            self.happenings[self.steps](self)
        if self.published < len(self.chunks) and self.random.random() < 0.5:
            self.cluster.publish(self.chunks[self.published])
            self.published += 1
        awake = [slot for slot in self.slots if slot is not resting and not slot.held]
        if not awake:
            return
        slot = self.random.choice(awake)
        if slot.worker is None:
            if self.steps >= slot.returns_at:
                self._revive(slot)
            return
        try:
            slot.worker.run_once()
        except Killed:
            slot.worker = None
        except FencedError:
            slot.worker, slot.next_id, slot.returns_at = None, slot.worker_id, self.steps + 2
            slot.stopped += 1
        self.cluster.check_rows()

    def _revive(self, slot: Slot) -> None:
        slot.worker_id = slot.next_id or slot.worker_id
        slot.worker = self.cluster.worker(slot.worker_id, lambda point: self._reached(slot, point))

    def _reached(self, slot: Slot, point: str) -> None:
        self.passed[point] += 1
        if point.startswith("flush"):
            self.cluster.check_rows()
        for fault in self.faults:
            if fault.point == point and fault.hit == self.passed[point]:
                self.struck.append(fault)
                self._strike(slot, fault.act)

    def _strike(self, slot: Slot, act: str) -> None:
        if act == "kill":
            slot.next_id, slot.returns_at = slot.worker_id, self.steps + self.random.randrange(1, 12)
            raise Killed
        if act == "replace":
            self.expel(slot)
            slot.next_id, slot.returns_at = f"w{self._fresh_ids}", self.steps + self.random.randrange(1, 12)
            self._fresh_ids += 1
            raise Killed
        if act == "hold":
            self.expel(slot)
        slot.held = True
        for _ in range(40):
            self._step(resting=slot)
        slot.held = False

    def expel(self, slot: Slot) -> None:
        """The group gives up on a member."""
        self.cluster.broker.expel(GROUP, slot.worker_id)
