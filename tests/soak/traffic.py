"""The soak's input: open loop, so what is offered does not depend on what the workers can do.

Duplicates, late events, poison, labels, and transactions of the producer that commit or abort. In variant
"apart" every merchant, terminal, device and address lives in one partition, so every score is a function of
its partition's log; in variant "mixed" all partitions share them.

Labels and transactions are two topics: where a label lies between transactions is told by Kafka's timestamps
alone. So the producer waits for its acknowledgements before it changes from one topic to the other.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, Literal, cast

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from stream.errors import RiskstreamError
from stream.kafka.kafka_python.client import KafkaPythonClient
from stream.kafka.kafka_python.producer import KafkaPythonProducer
from stream.kafka.port import Producer
from tests.crash import traffic as small
from tests.crash.traffic import Chunk, Item

Variant = Literal["apart", "mixed"]
_REMEMBERED = 100
_LABELS = 0.06
_TICK_S = 0.1
_MOST_AT_ONCE = 400
_VISIBLE_S = 20.0


class SoakTraffic(small.Traffic):
    """Crash tests' traffic with more accounts and every kind of entity, and a bounded memory."""

    def __init__(self, seed: int, partitions: int, variant: Variant, *, now_ms: int, events: int) -> None:
        """`events`: about how many will be asked for; they are spread over two months before `now_ms`."""
        gap_ms = min(8 * 60_000, 55 * small.DAY_MS / max(events, 1))
        super().__init__(seed, partitions, published_ms=now_ms, accounts_each=25, mean_gap_ms=gap_ms)
        self._variant = variant

    def _payment(self, account: str) -> dict[str, Any]:
        # Should there be more events than expected, the last ones share one time: none may be from the future.
        self.now_ms = min(self.now_ms, self._published_ms - small.DAY_MS)
        event = super()._payment(account)
        draw, home = self.random, event["merchant_id"].partition("-")[0]
        place = home if self._variant == "apart" else "all"
        event["merchant_id"] = f"{place}-{draw.randrange(8)}"
        event["terminal_id"] = draw.choice((None, f"t{place}-{draw.randrange(6)}"))
        event["device_id"] = draw.choice((None, f"d{place}-{draw.randrange(9)}"))
        number = int(home[1:]) if self._variant == "apart" else 200
        event["ip"] = draw.choice((None, f"10.0.{number}.{draw.randrange(1, 12)}"))
        past = self.past.get(account)
        if past is not None and len(past) > 2 * _REMEMBERED:
            del past[:_REMEMBERED]
        return event

    def next_chunk(self, size: int) -> Chunk:
        """The next messages; in a transaction of the producer there are no labels."""
        end = self.random.choices(("plain", "commit", "abort"), (0.86, 0.09, 0.05))[0]
        labels = _LABELS if end == "plain" else 0.0
        items = tuple(item for item in (self._item(labels) for _ in range(size)) if end == "plain" or not _label(item))
        if end == "abort":
            self._forget(items)
        return Chunk(items, end)

    def _forget(self, items: Sequence[Item]) -> None:
        aborted = {json.loads(i.value).get("event_id") for i in items if i.value and i.value.startswith(b'{"event_id"')}
        for account, events in list(self.past.items()):
            self.past[account] = [event for event in events if event["event_id"] not in aborted]
            if not self.past[account]:
                del self.past[account]


def _label(item: Item) -> bool:
    return item.topic == "labels"


def flush(producer: Producer) -> None:
    """Sends what is queued: an abort would drop it, and the log would never hold an aborted record."""
    cast(KafkaPythonProducer, producer)._vendor.flush(timeout=20.0)


class Publisher:
    """Publishes the traffic at a rate in a thread, whatever happens to the broker. `stop` waits for the last chunk."""

    def __init__(
        self,
        client: KafkaPythonClient,
        bootstrap: str,
        traffic: SoakTraffic,
        topics: dict[str, str],
        partitions: int,
        rate: float,
    ) -> None:
        """`topics`: the traffic's names ("transactions", "labels") -> the deployment's."""
        self._client, self._traffic, self._topics, self._rate = client, traffic, topics, rate
        self._inputs = [TopicPartition(topics["transactions"], number) for number in range(partitions)]
        self._committed, self._written = (
            KafkaConsumer(bootstrap_servers=bootstrap, isolation_level=level, enable_auto_commit=False)
            for level in ("read_committed", "read_uncommitted")
        )
        self.published = 0
        self._ended = threading.Event()
        self._plain = client.plain_producer()
        self._upstream: Producer | None = None
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self.trouble: list[str] = []

    def start(self) -> Publisher:
        self._thread.start()
        return self

    def stop(self, timeout_s: float = 180.0) -> None:
        self._ended.set()
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the traffic does not end"

    def abandon(self) -> None:
        """Ends it without waiting: the servers go."""
        self._ended.set()

    def _run(self) -> None:
        started = time.monotonic()
        while not self._ended.is_set():
            due = int((time.monotonic() - started) * self._rate) - self.published
            if due <= 0:
                self._ended.wait(_TICK_S)
                continue
            chunk = self._traffic.next_chunk(min(due, _MOST_AT_ONCE))
            self.published += min(due, _MOST_AT_ONCE)
            # What did not get into the log is no input: the checker reads the log.
            try:
                (self._publish if chunk.end == "plain" else self._publish_together)(chunk)
            except (RiskstreamError, KafkaError) as error:
                self.trouble.append(str(error))
                self._start_again()
        for part in (self._plain, self._committed, self._written):
            with suppress(RiskstreamError, KafkaError):
                part.close()

    def _start_again(self) -> None:
        """New producers: one whose records have expired may never recover."""
        with suppress(RiskstreamError, KafkaError):
            self._plain.close()
        if self._upstream is not None:
            with suppress(RiskstreamError, KafkaError):
                self._upstream.close()
        self._upstream = None
        while not self._ended.wait(0.2):
            try:
                self._plain = self._client.plain_producer()
                return
            except (RiskstreamError, KafkaError) as error:
                self.trouble.append(str(error))

    def _publish(self, chunk: Chunk) -> None:
        for topic, items in groupby(chunk.items, key=lambda item: item.topic):
            for item in items:
                self._plain.produce(self._topics[topic], item.value, key=item.key, headers=item.headers)
            self._plain.flush()
            time.sleep(0.003)

    def _publish_together(self, chunk: Chunk) -> None:
        if self._upstream is None:
            self._upstream = self._client.producer("upstream")
            self._upstream.init_transactions()
        self._upstream.begin()
        for item in chunk.items:
            self._upstream.produce(self._topics[item.topic], item.value, key=item.key, headers=item.headers)
        flush(self._upstream)
        (self._upstream.commit if chunk.end == "commit" else self._upstream.abort)()
        self._wait_until_visible()

    def _wait_until_visible(self) -> None:
        """The end of a transaction reaches its partitions a little later; a label must not overtake it."""
        deadline = time.monotonic() + _VISIBLE_S
        while self._committed.end_offsets(self._inputs) != self._written.end_offsets(self._inputs):
            if time.monotonic() > deadline:
                self.trouble.append("the end of a transaction does not reach its partitions")
                return
            time.sleep(0.01)
