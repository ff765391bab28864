"""Traces: a span per turn, linked to its events' traces; off by default, and never in the way."""

from __future__ import annotations

import functools
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry

from stream import app
from stream.clock import SystemClock
from stream.config import load_settings
from stream.domains.payments import DOMAIN
from stream.errors import ConfigError, TurnAborted
from stream.kafka.headers import TRACEPARENT
from stream.kafka.memory import MemoryBroker, MemoryKafka
from stream.kafka.port import Record, TopicPartition
from stream.metrics import Metrics
from stream.state.memory import MemoryStore
from stream.traces import Spans, TracedTurn, context_of
from tests.broker.harness import message_of, payments

SAMPLED = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = b"00-4bf92f3577b34da6a3ce929d0e0e4737-00f067aa0ba902b7-00"
_GIVEN = {"state.arena_accounts": 128, "state.arena_entities": 128, "batch.max_events": 50, "batch.max_wait_ms": 0}


class Traced:
    """A worker over in-memory ports whose spans end up in `exporter`."""

    def __init__(self, **given: object) -> None:
        self.exporter = InMemorySpanExporter()
        named = {name.replace("__", "."): value for name, value in given.items()}
        self.settings = load_settings(None, {}, _GIVEN | named).settings
        self.broker, metrics = MemoryBroker(), Metrics(CollectorRegistry())
        self.client = MemoryKafka(self.broker, self.settings.kafka)
        topics = self.settings.topics
        for topic in (topics.transactions, topics.labels, topics.scores, topics.alerts, topics.dead_letters):
            self.broker.create_topic(topic, partitions=1)
        self.spans_of = Spans(self.settings, metrics, self.exporter)
        self.fail_at = ""
        self.worker = app.build_worker(
            self.settings, DOMAIN, self.client, MemoryStore(spec_id=DOMAIN.spec_id), metrics, scorer=None,
            clock=SystemClock(), make_turn=functools.partial(TracedTurn, spans=self.spans_of), fault=self.fault,
        )  # fmt: skip
        self.worker.start()

    def fault(self, point: str) -> None:
        if point == self.fail_at:
            self.fail_at = ""
            raise TurnAborted("as the test wants it")

    def publish(self, *traceparents: bytes | None) -> None:
        """One event for each, with this header."""
        producer = self.client.plain_producer()
        for event, value in zip(payments(len(traceparents)), traceparents, strict=True):
            message = message_of(event, [] if value is None else [(TRACEPARENT, value)])
            producer.produce(self.settings.topics.transactions, message.value, key=message.key, headers=message.headers)
        producer.flush()

    def run(self, events: int) -> list[Record]:
        """Until so many scores are out; gives them."""
        reader = self.client.reader()
        reader.assign({TopicPartition(self.settings.topics.scores, 0): 0})
        found: list[Record] = []
        for _ in range(2_000):
            self.worker.run_once()
            for records in reader.poll(1_000, 0).values():
                found.extend(records)
            if len(found) >= events:
                return found
        raise AssertionError("the worker does not come to an end")

    def spans(self) -> tuple[list[ReadableSpan], list[ReadableSpan]]:
        """The spans of turns, and those of stages, once all are exported."""
        self.spans_of.close()
        spans: Sequence[ReadableSpan] = self.exporter.get_finished_spans()
        turns = [span for span in spans if span.name == "turn"]
        return turns, [span for span in spans if span.name != "turn"]


def traceparent_of(record: Record) -> bytes | None:
    return dict(record.headers).get(TRACEPARENT)


def test_a_turn_is_a_span_linked_to_the_traces_of_its_events() -> None:
    traced = Traced()
    traced.publish(SAMPLED, UNSAMPLED, None, b"nonsense")
    scores = traced.run(4)
    (turn,), stages = traced.spans()
    assert [f"{link.context.trace_id:032x}" for link in turn.links] == [
        SAMPLED[3:35].decode(),
        UNSAMPLED[3:35].decode(),
    ]
    attributes = dict(turn.attributes or {})
    assert attributes["messaging.batch.message_count"] == attributes["riskstream.scored"] == 4
    assert attributes["riskstream.partitions"] == "0"
    assert turn.status.status_code is StatusCode.UNSET
    assert turn.resource.attributes["service.instance.id"] == "worker-0"
    # Out again: an event's own context unchanged; the turn's for those that brought none.
    sent = [traceparent_of(score) for score in scores]
    assert sent[:2] == [SAMPLED, UNSAMPLED]
    context = turn.get_span_context()
    assert context is not None
    own = b"00-%032x-%016x-%02x" % (context.trace_id, context.span_id, context.trace_flags)
    assert context.trace_flags.sampled
    assert sent[2:] == [own, own]
    assert all(sum(name == TRACEPARENT for name, _ in score.headers) == 1 for score in scores)
    assert {span.name for span in stages} >= {
        "decode",
        "load",
        "fold",
        "score",
        "decide",
        "encode",
        "produce",
        "commit",
    }
    for span in stages:
        assert span.parent is not None
        assert span.parent.span_id == context.span_id
        assert turn.start_time is not None
        assert span.start_time is not None
        assert span.end_time is not None
        assert turn.end_time is not None
        assert turn.start_time - 5_000_000 <= span.start_time <= span.end_time <= turn.end_time


def test_no_span_names_an_account_or_an_event() -> None:
    traced = Traced()
    traced.publish(SAMPLED, None)
    traced.run(2)
    turns, stages = traced.spans()
    shown = {str(value) for span in (*turns, *stages) for value in (span.name, *(span.attributes or {}).values())}
    shown |= {str(value) for value in turns[0].resource.attributes.values()}
    assert {"turn", "kafka", "2", "worker-0"} <= shown
    for event in payments(2):
        assert not shown & {str(event[name]) for name in ("event_id", "account_id", "merchant_id", "device_id")}


def test_a_turn_that_did_not_commit_is_an_error_and_its_events_are_in_the_next() -> None:
    traced = Traced()
    traced.publish(SAMPLED)
    traced.fail_at = "turn:after_produce"
    traced.run(1)
    turns, _ = traced.spans()
    assert [turn.status.status_code for turn in turns] == [StatusCode.ERROR, StatusCode.UNSET]
    assert len(turns[1].links) == 1


@pytest.mark.parametrize(("traceparent", "turns"), [(SAMPLED, 1), (UNSAMPLED, 0), (None, 0)])
def test_without_chance_only_turns_with_a_sampled_event_are_traced(traceparent: bytes | None, turns: int) -> None:
    traced = Traced(traces__sample_ratio=0)
    traced.publish(traceparent)
    (score,) = traced.run(1)
    assert traceparent_of(score) == traceparent
    assert len(traced.spans()[0]) == turns


def test_a_turn_has_as_many_links_as_events() -> None:
    traced = Traced(batch__max_events=300, state__arena_accounts=600, state__arena_entities=600)
    traced.publish(*[b"00-%032x-00f067aa0ba902b7-01" % (number + 1) for number in range(200)])
    traced.run(200)
    turns, _ = traced.spans()
    assert sum(len(turn.links) for turn in turns) == 200
    assert max(len(turn.links) for turn in turns) > 128 or len(turns) > 1


@pytest.mark.parametrize(
    "value",
    [None, b"", b"00-0-0-01", SAMPLED.upper(), SAMPLED + b"-x", b"ff" + SAMPLED[2:], b"00-" + b"0" * 32 + SAMPLED[35:]],
)
def test_a_context_that_is_not_valid_is_none(value: bytes | None) -> None:
    assert context_of([(TRACEPARENT, value)]) is None  # type: ignore[list-item]


# --- off by default, and optional


def test_off_by_default_and_nothing_of_it_is_imported() -> None:
    code = (
        "import sys; from stream import app; from stream.config import load_settings;"
        "from stream.metrics import Metrics; from prometheus_client import CollectorRegistry;"
        "from stream.engine.turn import Turn;"
        "made, close = app.open_traces(load_settings(None, {}, {}).settings, Metrics(CollectorRegistry())); close();"
        "assert made is Turn; assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_extra_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "stream.traces", raising=False)
    settings = load_settings(None, {}, {"traces.endpoint": "http://127.0.0.1:4318/v1/traces"}).settings
    with pytest.raises(ConfigError, match=r"pip install 'riskstream\[otel\]'"):
        app.open_traces(settings, Metrics(CollectorRegistry()))


# --- over the wire


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes what an OTLP exporter posts."""

    requests: ClassVar[list[ExportTraceServiceRequest]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def collector() -> Iterator[str]:
    Collector.requests.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
    server.shutdown()
    server.server_close()
    thread.join()


def exported(endpoint: str) -> Traced:
    """A worker that exports to this address and has done one turn."""
    traced = Traced(traces__endpoint=endpoint)
    metrics = Metrics(CollectorRegistry())
    make_turn, close = app.open_traces(traced.settings, metrics)
    worker = app.build_worker(
        traced.settings, DOMAIN, traced.client, MemoryStore("other", DOMAIN.spec_id), metrics, scorer=None,
        clock=SystemClock(), make_turn=make_turn,
    )  # fmt: skip
    traced.worker.finish()
    worker.start()
    traced.worker = worker
    traced.publish(SAMPLED)
    traced.run(1)
    close()
    return traced


def test_spans_arrive_at_a_collector(collector: str) -> None:
    exported(collector)
    spans = [
        (span, resource)
        for request in Collector.requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    ((turn, resource),) = [(span, resource) for span, resource in spans if span.name == "turn"]
    assert [link.trace_id.hex() for link in turn.links] == [SAMPLED[3:35].decode()]
    names = {entry.key: entry.value.string_value for entry in resource.resource.attributes}
    assert names["service.name"] == "riskstream"
    assert {span.parent_span_id for span, _ in spans if span.name == "commit"} == {turn.span_id}


def test_a_collector_that_is_away_holds_nothing_up() -> None:
    exported("http://127.0.0.1:9/v1/traces")  # it scored, and `close` came back
