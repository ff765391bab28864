"""A small run with one fault, on shared servers, judged like a soak: what the planted defects must not survive."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path

from stream.kafka.kafka_python.client import KafkaPythonClient
from stream.kafka.port import TopicPartition
from tests.broker.harness import PATIENCE_S, Deployment, Message, until
from tests.checker import checks
from tests.checker.readers import GroupReader, StateReader
from tests.crash.traffic import Chunk, Traffic
from tests.soak.traffic import flush
from tests.soak.workers import ForkedWorker, Zygote


class Scene:
    """Traffic of a seed, forked workers, and the verdict. The deployment is the test's own."""

    def __init__(self, deployment: Deployment, zygote: Zygote, folder: Path, *, seed: int = 5) -> None:
        self.deployment, self.zygote, self.folder = deployment, zygote, folder
        self.partitions = deployment.partitions
        self.traffic = Traffic(seed, self.partitions, published_ms=int(time.time() * 1000))
        self._client: KafkaPythonClient = deployment.client
        self._numbers = itertools.count()

    # --- what happens

    def worker(self, worker_id: str, *, plants: Sequence[str] = (), **settings: object) -> ForkedWorker:
        """A worker that is starting."""
        given = self.deployment.overrides(kafka__worker_id=worker_id, **settings)
        made = ForkedWorker(self.zygote, self.deployment.folder_for(worker_id), given, plants=plants, write_rows=3)
        self.deployment.workers.append(made)
        made.launch()
        return made

    def publish(self, events: int) -> None:
        """About so many messages, some in transactions of the producer; then a plain payment in each partition."""
        aborted = tuple(self.traffic.event() for _ in range(4))
        self.traffic._forget(aborted)
        chunks = [Chunk(aborted, "abort"), *self.traffic.chunks(self.traffic.made + events)]
        chunks.append(Chunk(tuple(self.traffic.event(account) for account in self.traffic.accounts[: self.partitions])))
        for chunk in chunks:
            self._publish(chunk)

    def everybody(self) -> None:
        """A payment of every account, each at the first merchant of its partition."""
        payments = [
            self.traffic.event(name, merchant_id=f"m{place % self.partitions}-0", device_id=None)
            for place, name in enumerate(self.traffic.accounts)
        ]
        self._publish(Chunk(tuple(payments)))

    def flushed(self) -> bool:
        """Whether everything published has been committed, and all its rows are in Redis."""
        if not self.deployment.is_done():
            return False
        committed, store = self.deployment.committed(), self.deployment.store
        heads = [store.load_head(number) for number in range(self.partitions)]
        where = [TopicPartition(self.deployment.topics.transactions, number) for number in range(self.partitions)]
        return all(
            head is not None and head.checkpoint is not None and head.checkpoint.transactions == committed[tp].offset
            for head, tp in zip(heads, where, strict=True)
        )

    def _publish(self, chunk: Chunk) -> None:
        topics = {"transactions": self.deployment.topics.transactions, "labels": self.deployment.topics.labels}
        if chunk.end == "plain":
            for topic, items in itertools.groupby(chunk.items, key=lambda item: item.topic):
                self.deployment.publish((Message(i.value, i.key, i.headers) for i in items), topics[topic])
            return
        producer = self._client.producer(f"upstream-{self.deployment.settings.kafka.group}-{next(self._numbers)}")
        producer.init_transactions()
        producer.begin()
        # Without its labels: the marker of a transaction that ends a topic would leave the group short of its end.
        for item in (item for item in chunk.items if item.topic == "transactions"):
            producer.produce(topics["transactions"], item.value, key=item.key, headers=item.headers)
        flush(producer)
        (producer.commit if chunk.end == "commit" else producer.abort)()
        producer.close()
        # Its markers are written a little later: one behind the last payment would leave the group short of the end.
        name, ends = topics["transactions"], self.deployment.uncommitted_ends
        until(lambda: self.deployment.ends(name) == ends(name), "the end of the transaction reaches its partitions")

    # --- what is found

    def rows_ahead(self) -> list[str]:
        """Invariant 1, as it is now."""
        topics = self._topics
        state = StateReader(self._redis_url, self.deployment.settings.state_namespace)
        rows = state.rows()
        state.close()
        group = GroupReader(self._bootstrap, self.deployment.settings.kafka.group)
        committed = group.committed((topics.transactions, topics.labels), self.partitions)
        group.close()
        return checks.rows_ahead(rows, committed, topics)

    def complaints(self) -> list[str]:
        """The checker's verdict on everything, beside the undisturbed run. All workers must have left."""
        found: list[str] = []
        children = []
        for number in range(self.partitions):
            files = {name: str(self.folder / f"judge-{number}.{name}") for name in ("log", "out")}
            order = {
                "settings": self.deployment.overrides(), "bootstrap": self._bootstrap, "redis": self._redis_url,
                "folder": str(self.folder), "partition": number, "partitions": self.partitions, "kills": [],
            }  # fmt: skip
            children.append((self.zygote.fork("judge", **order, **files), files))
        for child, files in children:
            assert child.wait(PATIENCE_S) == 0, Path(files["log"]).read_text()
            found += json.loads(Path(files["out"]).read_text())["complaints"]
        return found

    @property
    def _topics(self) -> checks.Topics:
        return checks.Topics(*(getattr(self.deployment.topics, name) for name in checks.Topics._fields))

    @property
    def _bootstrap(self) -> str:
        return self.deployment.settings.kafka.bootstrap_servers

    @property
    def _redis_url(self) -> str:
        return self.deployment.settings.redis.url.get_secret_value()
