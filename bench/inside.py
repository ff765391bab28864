"""The engine inside this process, over in-memory Kafka and a real redis-server: for what Kafka has no part in."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from bench.job import PARTITIONS, Job
from stream import app, interpreter
from stream.clock import SystemClock
from stream.config import LogSettings, Settings
from stream.engine.worker import Worker
from stream.history.batch import HistoryBatch
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.logs import configure_logs
from stream.metrics import STAGES, Metrics
from stream.scoring.loading import load_scorer
from stream.stack import RedisServer
from stream.state.redis import RedisStore

_TURNS = 1_000_000


class InsideEngine:
    """One worker whose loop is turned by the caller."""

    def __init__(self, job: Job, redis: RedisServer, **settings: object) -> None:
        configure_logs(LogSettings(level="warning"))
        self.settings: Settings = job.settings(**{"redis__url": redis.url, "kafka__group": "bench", **settings})
        self.client = MemoryKafka(MemoryBroker(), self.settings.kafka)
        admin, topics = self.client.admin(), self.settings.topics
        for topic in (topics.transactions, topics.labels, topics.scores, topics.alerts, topics.dead_letters):
            admin.create_topic(topic, partitions=PARTITIONS, replication_factor=1, config={})
        self.store = RedisStore(self.settings.redis, self.settings.state_namespace, job.domain.spec_id)
        self.metrics = Metrics(CollectorRegistry())
        scorer = load_scorer(job.bundle, job.domain)
        self.worker: Worker = app.build_worker(
            self.settings, job.domain, self.client, self.store, self.metrics, scorer=scorer, clock=SystemClock()
        )
        interpreter.settle()
        self.worker.start()
        self._published = 0

    def publish(self, events: HistoryBatch) -> None:
        producer = self.client.plain_producer()
        for account, value in zip(events.text["account_id"].tolist(), events.events_json(), strict=True):
            producer.produce(self.settings.topics.transactions, value, key=account.encode())
        producer.flush()
        self._published += len(events)

    def run(self) -> None:
        """Turns until everything published is done, then flushes."""
        for _ in range(_TURNS):
            done = self.metrics.registry.get_sample_value
            labels = ({"partition": str(number)} for number in range(PARTITIONS))
            if sum(done("riskstream_events_in_total", label) or 0 for label in labels) >= self._published:
                break
            self.worker.run_once()
        self.worker.flush_all()

    def stages(self) -> dict[str, float]:
        """CPU seconds so far, by stage."""
        value = self.metrics.registry.get_sample_value
        return {name: value("riskstream_stage_cpu_seconds_total", {"stage": name}) or 0.0 for name in STAGES}
