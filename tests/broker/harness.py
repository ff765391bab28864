"""Worker processes on real servers. Each test has topics, a group, a namespace and workers of its own."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import signal
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest.mock import patch

import pytest
from kafka import IsolationLevel, KafkaConsumer
from kafka import TopicPartition as VendorPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient, NewPartitions, OffsetSpec
from kafka.errors import NoError
from kafka.structs import OffsetAndMetadata
from prometheus_client.parser import text_string_to_metric_families

from stream import app
from stream.cli import main
from stream.config import load_settings
from stream.events.moments import moment_text
from stream.kafka.connect import client_of
from stream.kafka.port import CommittedOffset, Headers, Record, TopicPartition
from stream.stack import ApacheKafka, LocalServer, RedisServer
from stream.state.redis import RedisStore
from stream.topics import create_topics, plan_topics

PATIENCE_S = 90.0
START_MS = 1_767_225_600_000
SESSION_TIMEOUT_S = 6.0
FAULTY_WORKER = Path(__file__).with_name("faulty_worker.py")
_SETTINGS: Mapping[str, object] = {
    "kafka.session_timeout_ms": int(SESSION_TIMEOUT_S * 1000),
    "kafka.heartbeat_interval_ms": 1_000,
    "kafka.client": os.environ.get("RISKSTREAM_KAFKA__CLIENT", "kafka-python"),
    "log.format": "json",
}


def until(done: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S, every_s: float = 0.05) -> float:
    """Waits until the condition holds; returns the seconds it took. Fails the test when that is too long."""
    started = time.monotonic()
    while not done():
        assert time.monotonic() - started < timeout_s, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(every_s)
    return time.monotonic() - started


class Message(NamedTuple):
    """Something to publish. `partition` None: by key."""

    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()
    partition: int | None = None


def payments(count: int, *, seed: int = 0, accounts: int = 40) -> Iterator[dict[str, Any]]:
    """Events in order of time, a second apart; a few merchants and devices are shared by the accounts."""
    generator = random.Random(seed)
    for number in range(count):
        account = generator.randrange(accounts)
        yield {
            "event_id": f"e{seed}-{number:06d}",
            "account_id": f"a{account}",
            "timestamp": moment_text(START_MS + 86_400_000 * seed + 1_000 * number),
            "amount": round(generator.lognormvariate(3, 1), 2),
            "currency": "USD",
            "merchant_id": f"m{generator.randrange(12)}",
            "mcc": generator.choice(["5411", "5812", "5999"]),
            "country": "US",
            "channel": "pos",
            "device_id": f"d{account % 7}",
        }


def message_of(event: Mapping[str, Any], headers: Headers = ()) -> Message:
    return Message(json.dumps(event).encode(), event["account_id"].encode(), headers)


def messages_of(events: Iterable[Mapping[str, Any]]) -> list[Message]:
    return [message_of(event) for event in events]


def label_of(event: Mapping[str, Any], *, fraud: bool = True) -> dict[str, Any]:
    """The label message of a payment."""
    repeated = ("event_id", "account_id", "timestamp", "amount", "currency", "merchant_id", "device_id")
    verdict = {"fraud": fraud, "labelled_at": event["timestamp"], "source": "chargeback"}
    return {name: event[name] for name in repeated} | verdict


@dataclass(frozen=True, slots=True)
class Output:
    """A committed output message, decoded."""

    record: Record
    content: dict[str, Any] = field(repr=False)

    @property
    def origin(self) -> tuple[str, int, int]:
        origin = self.content["origin"]
        return origin["topic"], origin["partition"], origin["offset"]


class WorkerView:
    """A worker seen from outside: its log and its HTTP answers. Subclasses say where."""

    def launch(self) -> None:
        raise NotImplementedError

    def wait_ready(self, timeout_s: float = PATIENCE_S) -> None:
        """Blocks until it has said that it has started."""
        raise NotImplementedError

    def kill(self) -> None:
        raise NotImplementedError

    def output(self) -> str:
        """Everything that this start has written."""
        raise NotImplementedError

    def send(self, number: signal.Signals) -> None:
        raise NotImplementedError

    def wait_exit(self, timeout_s: float = PATIENCE_S) -> int:
        """The exit code, once the process has ended by itself or by a signal sent before."""
        raise NotImplementedError

    @property
    def alive(self) -> bool:
        raise NotImplementedError

    @property
    def address(self) -> str:
        (port,) = [line["http_port"] for line in self.logs("started")]
        return f"http://127.0.0.1:{port}"

    def logs(self, message: str | None = None) -> list[dict[str, Any]]:
        """The JSON log lines of this start, or those with this message."""
        lines = [json.loads(line) for line in self.output().splitlines() if line.startswith("{") and line[-1] == "}"]
        return [line for line in lines if message in (None, line["message"])]

    def terminate(self, timeout_s: float = PATIENCE_S) -> int:
        """SIGTERM; the exit code."""
        self.send(signal.SIGTERM)
        return self.wait_exit(timeout_s)

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of an HTTP request; (0, "") when nobody listens."""
        try:
            with urllib.request.urlopen(self.address + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def is_ready(self) -> bool:
        return self.alive and self.get("/readyz")[0] == 200

    def metric(self, name: str, /, **labels: str) -> float:
        """The sum of the samples of this name that have these labels."""
        status, text = self.get("/metrics")
        assert status == 200
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


class WorkerProcess(LocalServer, WorkerView):
    """`riskstream run` as a child that dies with this process. `start` waits for its first log line."""

    kind: ClassVar[str] = "worker"
    port_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, data: Path, environment: Mapping[str, str], program: Sequence[str | Path]) -> None:
        super().__init__(data)
        self._environment = environment
        self._program = program

    def _command(self) -> Sequence[str | Path]:
        variables = [f"{name}={value}" for name, value in self._environment.items()]
        return ["/usr/bin/env", *variables, sys.executable, *self._program, "run"]

    def answers(self) -> bool:
        return bool(self.logs("started"))

    @property
    def address(self) -> str:
        return WorkerView.address.fget(self)

    @property
    def alive(self) -> bool:
        return self.process is not None

    def output(self) -> str:
        return self._last_output()

    def send(self, number: signal.Signals) -> None:
        process = self.process
        assert process is not None, self.output()
        os.kill(process.pid, number)

    def wait_exit(self, timeout_s: float = PATIENCE_S) -> int:
        assert self._process is not None
        return self._process.wait(timeout_s)


class Deployment:
    """One test's corner of the servers: topics, group, namespace, workers. Close it when done."""

    def __init__(
        self,
        kafka: ApacheKafka,
        redis: RedisServer,
        name: str,
        folder: Path,
        *,
        partitions: int = 4,
        **settings: object,
    ) -> None:
        """`settings`: dotted names with `__` for the dot, on top of the tests' own."""
        topics = {f"topics.{field}": f"{name}.{field}" for field in ("transactions", "labels", "scores", "alerts")}
        topics |= {"topics.dead_letters": f"{name}.dlq", "topics.models": f"{name}.models"}
        self._overrides: dict[str, object] = {
            **_SETTINGS,
            **topics,
            "kafka.bootstrap_servers": kafka.bootstrap,
            "kafka.group": name,
            "redis.url": redis.url,
            **_dotted(settings),
        }
        self.partitions = partitions
        self.settings = load_settings(None, {}, self._overrides).settings
        self.topics = self.settings.topics
        self.client = client_of(self.settings.kafka)
        self.domain = app.load_domain(self.settings)
        self.store = RedisStore(self.settings.redis, self.settings.state_namespace, self.domain.spec_id)
        self.workers: list[WorkerView] = []
        self._folder = folder
        self._numbers = itertools.count()
        self._producer = self.client.plain_producer()
        self.admin = self.client.admin()
        self._vendor = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        self._reader = self.client.reader()

    def create_topics(self) -> Deployment:
        create_topics(self.admin, plan_topics(self.settings, partitions=self.partitions))
        return self

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        for part in (self._producer, self.admin, self._vendor, self._reader, self.store):
            part.close()

    # --- workers

    def overrides(self, **settings: object) -> dict[str, object]:
        """The settings that differ from the defaults, by dotted name."""
        return {**self._overrides, **_dotted(settings)}

    def environment(self, **settings: object) -> dict[str, str]:
        """The same as environment variables."""
        given = self.overrides(**settings)
        return {f"RISKSTREAM_{name.replace('.', '__').upper()}": str(value) for name, value in given.items()}

    def folder_for(self, worker_id: str) -> Path:
        """A new folder for one start of a worker."""
        return self._folder / f"{worker_id}-{next(self._numbers)}"

    def worker(self, worker_id: str = "w0", program: Sequence[str | Path] = (), **settings: object) -> WorkerProcess:
        """A worker that does not run yet. `program`: the script instead of `-m stream.cli`."""
        variables = self.environment(kafka__worker_id=worker_id, **settings)
        made = WorkerProcess(self.folder_for(worker_id), variables, program or ("-m", "stream.cli"))
        self.workers.append(made)
        return made

    def started(self, *workers: WorkerView, ready: bool = True) -> None:
        """Starts workers side by side; `ready` waits until every one has partitions that run."""
        for worker in workers:
            worker.launch()
        for worker in workers:
            worker.wait_ready(PATIENCE_S)
        if ready:
            until(lambda: all(worker.is_ready() for worker in workers), "the workers are ready")

    # --- messages

    def publish(self, messages: Iterable[Message], topic: str | None = None, timestamp_ms: int | None = None) -> None:
        """Publishes to the transactions topic, or another one, and waits for the acknowledgements."""
        for message in messages:
            self._producer.produce(
                topic or self.topics.transactions,
                message.value,
                key=message.key,
                headers=message.headers,
                partition=message.partition,
                timestamp_ms=timestamp_ms,
            )
        self._producer.flush()

    def publish_at(self, messages: Iterable[tuple[int, Message]]) -> int:
        """Publishes transactions with Kafka timestamps of their own (ms), as they come; returns how many."""
        count = 0
        for timestamp_ms, message in messages:
            self._producer.produce(self.topics.transactions, message.value, key=message.key, timestamp_ms=timestamp_ms)
            count += 1
        self._producer.flush()
        return count

    def publish_labels(self, events: Iterable[Mapping[str, Any]]) -> None:
        self.publish(messages_of(label_of(event) for event in events), self.topics.labels)

    def ends(self, topic: str) -> dict[TopicPartition, int]:
        """The first offset of each partition that committed readers cannot have yet."""
        return {tp: self._reader.end_offset(tp) for tp in self._all(topic)}

    def uncommitted_ends(self, topic: str) -> dict[TopicPartition, int]:
        """The same for readers that see open transactions too."""
        wanted = {VendorPartition(*tp): OffsetSpec.LATEST for tp in self._all(topic)}
        found = self._vendor.list_partition_offsets(wanted, isolation_level=IsolationLevel.READ_UNCOMMITTED)
        return {TopicPartition(*tp): entry.offset for tp, entry in found.items()}

    def committed(self) -> dict[TopicPartition, CommittedOffset]:
        """The group's offsets of both inputs, without waiting for open transactions."""
        inputs = [*self._all(self.topics.transactions), *self._all(self.topics.labels)]
        return dict(self.admin.last_committed(self.settings.kafka.group, inputs))

    def stable_committed(self) -> dict[tuple[str, int], int]:
        """The group's offsets of both inputs, after the transactions that are pending over them. Blocks for them."""
        consumer = KafkaConsumer(
            bootstrap_servers=self.settings.kafka.bootstrap_servers, group_id=self.settings.kafka.group,
            isolation_level="read_committed", enable_auto_commit=False,
        )  # fmt: skip
        try:
            inputs = [*self._all(self.topics.transactions), *self._all(self.topics.labels)]
            found = {tuple(tp): consumer.committed(VendorPartition(*tp), timeout_ms=20_000) for tp in inputs}
        finally:
            consumer.close()
        return {(topic, number): offset or 0 for (topic, number), offset in found.items()}

    def move_offsets(self, offsets: Mapping[TopicPartition, int | CommittedOffset]) -> None:
        """What an operator's tool does: sets the group's offsets while nobody is in it."""
        given = {tp: o if isinstance(o, CommittedOffset) else CommittedOffset(o, "") for tp, o in offsets.items()}
        moved = {VendorPartition(*tp): OffsetAndMetadata(o.offset, o.metadata, -1) for tp, o in given.items()}
        for answer in self._vendor.alter_group_offsets(self.settings.kafka.group, moved).values():
            assert answer is NoError, f"the offsets were not moved: {answer}"

    def configure(self, topic: str, name: str, value: str) -> None:
        """Sets one configuration of a topic."""
        self._vendor.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {name: value})])

    def add_partitions(self, count: int) -> None:
        """What an operator's tool does: gives both inputs so many partitions."""
        self._vendor.create_partitions({topic: NewPartitions(count) for topic in self._inputs()})

    def delete_before(self, offsets: Mapping[TopicPartition, int]) -> None:
        """What retention does: the log of each partition begins at its offset from now on."""
        self._vendor.delete_records({VendorPartition(*tp): offset for tp, offset in offsets.items()})

    def members(self) -> set[str]:
        """Worker ids of the group's members."""
        group = self.settings.kafka.group
        return {member["group_instance_id"] for member in self._vendor.describe_groups([group])[group]["members"]}

    def is_done(self) -> bool:
        """Whether everything published has been committed by the group."""
        committed = self.committed()
        ends = self.ends(self.topics.transactions) | self.ends(self.topics.labels)
        return all(end == 0 or (tp in committed and committed[tp].offset >= end) for tp, end in ends.items())

    def wait_done(self, timeout_s: float = PATIENCE_S) -> float:
        """Until everything published has been committed; returns the seconds it took."""
        try:
            return until(self.is_done, "the group has done everything", timeout_s)
        except AssertionError as error:
            for worker in self.workers:
                error.add_note(f"{'alive' if worker.alive else 'ended'}: {worker.output()[-3000:]}")
            raise

    def read(self, topic: str) -> list[Record]:
        """Every committed record, in offset order per partition."""
        ends = self.ends(topic)
        self._reader.assign(dict.fromkeys(ends, 0))
        records: list[Record] = []
        started = time.monotonic()
        while any(self._reader.position(tp) < end for tp, end in ends.items()):
            assert time.monotonic() - started < PATIENCE_S, f"{topic} cannot be read to its end"
            for batch in self._reader.poll(2_000, 100).values():
                records.extend(batch)
        return records

    def scores(self) -> list[Output]:
        return self._outputs(self.topics.scores)

    def alerts(self) -> list[Output]:
        return self._outputs(self.topics.alerts)

    def dead_letters(self) -> list[Output]:
        return self._outputs(self.topics.dead_letters)

    def check_exactly_once(self, *, duplicates: int = 0) -> list[Output]:
        """One score or dead letter of every message but for duplicates, in order by account. Returns the scores."""
        scores = self.scores()
        last: dict[tuple[str, int], int] = {}
        for score in scores:
            where, offset = (score.content["account_id"], score.record.partition), score.origin[2]
            assert last.get(where, -1) < offset, f"out of order: {score.origin}"
            last[where] = offset
        seen = Counter(output.origin for output in [*scores, *self.dead_letters()])
        inputs = {(r.topic, r.partition, r.offset) for t in self._inputs() for r in self.read(t)}
        assert [origin for origin, count in seen.items() if count > 1] == []
        assert set(seen) <= inputs
        unanswered = {origin for origin in inputs - set(seen) if origin[0] == self.topics.transactions}
        assert len(unanswered) == duplicates, sorted(unanswered)[:10]
        return scores

    def _inputs(self) -> tuple[str, str]:
        return self.topics.transactions, self.topics.labels

    def _outputs(self, topic: str) -> list[Output]:
        return [Output(record, json.loads(record.value or b"")) for record in self.read(topic)]

    def _all(self, topic: str) -> list[TopicPartition]:
        return [TopicPartition(topic, number) for number in range(self.partitions)]


def run_command(environment: Mapping[str, str], *words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `riskstream ...`, run in this process: that saves its start."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with (
        patch.dict(os.environ, environment),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main([*map(str, words)])
    out.flush()
    assert isinstance(out.buffer, io.BytesIO)
    return int(ended.value.code or 0), out.buffer.getvalue().decode(), err.getvalue()


def _dotted(settings: Mapping[str, object]) -> dict[str, object]:
    return {name.replace("__", "."): value for name, value in settings.items()}
