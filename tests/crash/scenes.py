"""Small scripts for the crash tests: turns of one worker, labels in clear places, commits without an answer."""

from __future__ import annotations

from collections.abc import Callable

from stream.clock import ManualClock
from stream.config import Settings
from stream.errors import UnavailableError
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.kafka.memory.client import MemoryProducer
from tests.crash.cluster import Cluster
from tests.crash.traffic import Chunk, Traffic


def turn(run_once: Callable[[], None], clock: ManualClock, turns: int) -> None:
    for _ in range(turns):
        run_once()
        clock.advance_ms(50)


def flags(cluster: Cluster) -> dict[str, int]:
    """Scores by flag."""
    found: dict[str, int] = {}
    for _, score in cluster.contents().scores.ordered:
        for flag in score["flags"]:
            found[flag] = found.get(flag, 0) + 1
    return found


def unambiguous(traffic: Traffic, rounds: int) -> list[Chunk]:
    """Labels and transactions in turns: with a pause after each, timestamps alone tell where labels were folded."""
    chunks = []
    for _ in range(rounds):
        chunks.append(Chunk(tuple(traffic.event() for _ in range(8))))
        chunks.append(Chunk(tuple(traffic.label() for _ in range(2))))
    return chunks


def play_in_turns(cluster: Cluster, chunks: list[Chunk], happenings: dict[int, Callable[[], object]]) -> None:
    """Publishes chunk after chunk to one worker that finishes each; before chunk i, `happenings[i]`."""
    worker = cluster.worker("w0")
    for number, chunk in enumerate(chunks):
        happenings.get(number, lambda: None)()
        cluster.publish(chunk)
        for _ in range(100):
            worker.run_once()
            cluster.clock.advance_ms(40)
            cluster.check_rows()
            if cluster.drained() and not worker.restoring():
                break
        cluster.clock.advance_ms(1_000)
    for _ in range(100):
        worker.run_once()
        cluster.clock.advance_ms(100)
    worker.finish()
    assert cluster.complaints == []


class Unsure(MemoryProducer):
    """Every fourth commit has no answer: done or not, the client cannot know."""

    done = True
    every = 4
    commits = 0

    def commit(self) -> None:
        self.commits += 1
        if self.commits % self.every:
            super().commit()
            return
        if self.done:
            super().commit()
        raise UnavailableError("no answer to the commit")


class UnsureKafka(MemoryKafka):
    def producer(self, transactional_id: str) -> MemoryProducer:
        return Unsure(self.broker, transactional_id, 60_000)


def unsure(broker: MemoryBroker, settings: Settings) -> MemoryKafka:
    return UnsureKafka(broker, settings.kafka)
