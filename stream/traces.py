"""OpenTelemetry traces, an optional extra: a span per turn with its stages, linked to the traces of its events.

An output carries on the `traceparent` of its event unchanged, so whoever reads an alert is in the payment's trace, and
the turn's span is linked to that trace. The output of an event without one carries the turn's. No attribute names an
account, a card or an event.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from stream import __version__
from stream.config import Settings
from stream.engine.inputs import Share
from stream.engine.turn import Message, Turn, TurnResult
from stream.kafka.headers import TRACEPARENT
from stream.kafka.port import Headers, Record
from stream.metrics import Metrics

_EXPORT_TIMEOUT_S = 2
_TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED = 1


def context_of(headers: Headers) -> SpanContext | None:
    """The W3C trace context that a message brings; None without one, or with one that is not valid."""
    for name, value in headers:
        if name == TRACEPARENT and value is not None and (found := _TRACEPARENT.fullmatch(value)):
            trace_id, span_id, flags = (int(part, 16) for part in found.groups())
            context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
            return context if context.is_valid else None
    return None


def header_of(context: SpanContext) -> tuple[str, bytes]:
    """The header that carries a context on."""
    return TRACEPARENT, b"00-%032x-%016x-%02x" % (context.trace_id, context.span_id, context.trace_flags)


class Spans:
    """Makes and exports the spans of one worker. `close` exports what waits; blocks for a few seconds at most."""

    def __init__(self, settings: Settings, metrics: Metrics, exporter: SpanExporter | None = None) -> None:
        """`exporter` None: OTLP over HTTP to `traces.endpoint`."""
        resource = Resource.create(
            {
                "service.name": "riskstream",
                "service.version": __version__,
                "service.instance.id": settings.kafka.worker_id,
                "messaging.consumer.group.name": settings.kafka.group,
            }
        )
        # As many links as a turn has events: the SDK's own limit is 128.
        self._provider = TracerProvider(resource=resource, span_limits=SpanLimits(max_links=settings.batch.max_events))
        sink = exporter or OTLPSpanExporter(settings.traces.endpoint, timeout=_EXPORT_TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(sink))
        self._tracer = self._provider.get_tracer("riskstream", __version__)
        self._ratio = settings.traces.sample_ratio
        self._turn: Span | None = None
        metrics.watch_stages(self._stage)

    def begin(self, records: Sequence[Record]) -> None:
        """A turn begins. It is traced if one of its events is sampled, or by chance (traces.sample_ratio)."""
        if self._turn is not None:
            self.fail("not committed")
        contexts = (context_of(record.headers) for record in records if record.headers)
        sampled = any(context is not None and context.trace_flags & _SAMPLED for context in contexts)
        if sampled or random.random() < self._ratio:
            started = self._tracer.start_span("turn", kind=SpanKind.CONSUMER)
            self._turn = started if isinstance(started, Span) else None

    @property
    def header(self) -> tuple[str, bytes] | None:
        """What carries the open turn's context on; None when it is not traced."""
        return header_of(self._turn.get_span_context()) if self._turn is not None else None

    def end(self, records: Sequence[Record], attributes: dict[str, int | str]) -> None:
        """The turn has committed these records."""
        if self._turn is None:
            return
        for record in records:
            context = context_of(record.headers) if record.headers else None
            if context is not None:
                self._turn.add_link(context)
        self._turn.set_attributes(attributes)
        self._turn.end()
        self._turn = None

    def fail(self, why: str) -> None:
        """The turn came to nothing; its events come again in another."""
        if self._turn is not None:
            self._turn.set_status(Status(StatusCode.ERROR, why))
            self._turn.end()
            self._turn = None

    def close(self) -> None:
        self.fail("the worker ended")
        self._provider.shutdown()

    def _stage(self, name: str, took_s: float) -> None:
        """A stage has ended: a child of the open turn. `poll` and `flush` lie outside of turns."""
        if self._turn is None:
            return
        end_ns = time.time_ns()
        parent = set_span_in_context(NonRecordingSpan(self._turn.get_span_context()))
        self._tracer.start_span(name, parent, start_time=end_ns - int(took_s * 1e9)).end(end_ns)


class TracedTurn(Turn):
    """A turn whose beginning and commit are told to `spans`."""

    def __init__(self, *parts: Any, spans: Spans, **named: Any) -> None:
        """`parts` and `named` as in Turn."""
        super().__init__(*parts, **named)
        self._spans = spans

    def run(self, shares: list[Share], flush_all: Callable[[], None]) -> TurnResult:
        self._spans.begin([record for share in shares for record in share.records])
        try:
            result = super().run(shares, flush_all)
        except Exception as error:
            self._spans.fail(type(error).__name__)
            raise
        own = self._spans.header
        if own is not None:
            result.messages = [
                message if context_of(message.headers) is not None else _with_context(message, own)
                for message in result.messages
            ]
        return result

    def count(self, shares: list[Share], result: TurnResult) -> None:
        super().count(shares, result)
        records = [record for share in shares for record in share.records]
        scored = len(result.judged.scored.index) if result.judged is not None else 0
        self._spans.end(
            records,
            {
                "messaging.system": "kafka",
                "messaging.operation.type": "process",
                "messaging.batch.message_count": len(records),
                "riskstream.labels": sum(len(share.labels) for share in shares),
                "riskstream.scored": scored,
                "riskstream.alerts": len(result.judged.suspicious) if result.judged is not None else 0,
                "riskstream.partitions": ",".join(str(share.partition.number) for share in shares),
            },
        )


def _with_context(message: Message, own: tuple[str, bytes]) -> Message:
    return message._replace(headers=[*(header for header in message.headers if header[0] != TRACEPARENT), own])
