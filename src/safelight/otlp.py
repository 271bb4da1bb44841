"""Spans as OpenTelemetry has them, sent to a collector by a thread of its own (OTLP over HTTP).

Needs the extra ``otel``. The standard ``OTEL_*`` variables hold for everything but the collector's address.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace import Span as SDKSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from safelight.tracing import NO_SPAN, Attributes, Span, TraceContext, Tracing

log = logging.getLogger(__name__)

_SEND_EVERY_S = 1.0
"""Not OpenTelemetry's five seconds: a worker that is killed takes with it what it has not sent."""

_CLOSE_S = 1.0
_TELL_AGAIN_S = 600.0
_QUERY = "url.query"
_QUIET = ("opentelemetry.sdk", "opentelemetry.exporter", "urllib3")
_PROPAGATOR = TraceContextTextMapPropagator()


class OtlpTracing(Tracing):
    """Spans of this process, sent to ``endpoint``, a full address; ``resource`` says which process that is."""

    def __init__(self, endpoint: str, resource: Attributes) -> None:
        for name in _QUIET:  # they would complain at every batch; what is to be said, the exporter says
            logging.getLogger(name).setLevel(logging.CRITICAL)
        known = {"service.name": "safelight", "process.pid": os.getpid(), **resource}
        self.provider = TracerProvider(
            resource=Resource.create(known | dict(OTELResourceDetector().detect().attributes)), shutdown_on_exit=False
        )
        self._exporter = _Exporter(endpoint)
        delay_ms = None if "OTEL_BSP_SCHEDULE_DELAY" in os.environ else _SEND_EVERY_S * 1000
        self.provider.add_span_processor(_WithoutQuery())
        self.provider.add_span_processor(BatchSpanProcessor(self._exporter, schedule_delay_millis=delay_ms))
        self._tracer = self.provider.get_tracer("safelight")

    def begin(
        self,
        name: str,
        parent: TraceContext,
        attributes: Attributes | None = None,
        *,
        start_s: float | None = None,
        links: Sequence[TraceContext] = (),
    ) -> Span:
        if not parent:
            return NO_SPAN
        return _OtlpSpan(
            self._tracer.start_span(
                name,
                context=_context(parent.get("traceparent", ""), parent.get("tracestate", "")),
                attributes=attributes,
                start_time=_nanoseconds(start_s),
                links=[trace.Link(_span_context(link)) for link in links],
            )
        )

    def request_span(self) -> Span:
        return _OtlpSpan(trace.get_current_span())

    def close(self) -> None:
        self._exporter.is_closing = True
        # The SDK would wait for half a minute if the collector does not answer.
        last_words = threading.Thread(target=self.provider.shutdown, name="send last spans", daemon=True)
        last_words.start()
        last_words.join(_CLOSE_S)


class _OtlpSpan(Span):
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def context(self) -> TraceContext:
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(self._span, Context()))
        return carrier

    def note(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def fail(self, code: str, message: str) -> None:
        self._span.set_attribute("error.type", code)
        self._span.set_status(trace.Status(trace.StatusCode.ERROR, message))

    def end(self, end_s: float | None = None) -> None:
        self._span.end(_nanoseconds(end_s))


class _Exporter(OTLPSpanExporter):
    """Says once that the collector does not take spans, and once that it does again."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint=endpoint)
        self.is_closing = False
        self._address = endpoint
        self._lost_count = 0
        self._told_s = -_TELL_AGAIN_S

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        if not self.is_closing:  # the log may be gone before this thread is
            self._tell(len(spans), is_taken=result is SpanExportResult.SUCCESS)
        return result

    def _tell(self, count: int, *, is_taken: bool) -> None:
        if is_taken:
            if self._lost_count:
                log.info("traces: %s takes spans again; %d were lost", self._address, self._lost_count)
            self._lost_count, self._told_s = 0, -_TELL_AGAIN_S
            return
        self._lost_count += count
        if time.monotonic() - self._told_s > _TELL_AGAIN_S:
            self._told_s = time.monotonic()
            log.warning("traces: %s does not take spans, %d are lost; jobs go on", self._address, self._lost_count)


class _WithoutQuery(SpanProcessor):
    """The query of an address may hold what a client should not have written there."""

    def on_start(self, span: SDKSpan, parent_context: Context | None = None) -> None:
        if span.kind is trace.SpanKind.SERVER and span.attributes and _QUERY in span.attributes:
            span.set_attribute(_QUERY, "***")


@functools.lru_cache(maxsize=256)  # the steps of a job have one parent
def _context(traceparent: str, tracestate: str) -> Context:
    return _PROPAGATOR.extract({"traceparent": traceparent, "tracestate": tracestate}, Context())


def _nanoseconds(time_s: float | None) -> int | None:
    return None if time_s is None else int(time_s * 1e9)


def _span_context(context: TraceContext) -> trace.SpanContext:
    return trace.get_current_span(_context(context["traceparent"], context.get("tracestate", ""))).get_span_context()
