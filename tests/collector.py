"""An OpenTelemetry collector: takes spans by OTLP over HTTP, as any other does, and keeps them."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """Ids in hexadecimal, times in nanoseconds of Unix time; ``resource`` says which process made it."""

    name: str
    trace_id: str
    id: str
    parent_id: str
    begin_ns: int
    end_ns: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    links: list[str]
    error: str = ""
    trace_state: str = ""
    events: list[str] = field(default_factory=list)

    def holds(self, other: ReceivedSpan) -> bool:
        """Whether the other one lies within its time."""
        return self.begin_ns <= other.begin_ns <= other.end_ns <= self.end_ns


class Collector:
    """On a free port of loopback; use it as a context manager."""

    def __init__(self) -> None:
        self.spans: list[ReceivedSpan] = []
        self.bodies: list[bytes] = []
        self._came = threading.Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                outer._received(self.path, body)
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _received(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        request = ExportTraceServiceRequest.FromString(body)
        with self._came:
            self.bodies.append(body)
            for group in request.resource_spans:
                resource = {pair.key: _value(pair.value) for pair in group.resource.attributes}
                self.spans += [_span(span, resource) for scope in group.scope_spans for span in scope.spans]
            self._came.notify_all()

    def wait_for(self, condition: Callable[[list[ReceivedSpan]], Any]) -> list[ReceivedSpan]:
        """All spans, in the order of their begin, once the condition holds."""
        end_s = time.monotonic() + _TIMEOUT_S
        with self._came:
            while not condition(self.spans):
                left_s = end_s - time.monotonic()
                assert left_s > 0, "\n" + "\n".join(f"{span.name} {span.attributes}" for span in self.spans)
                self._came.wait(left_s)
            return sorted(self.spans, key=lambda span: span.begin_ns)

    def forget(self) -> None:
        """What came so far; what a worker still sends of it comes anyhow."""
        with self._came:
            self.spans.clear()
            self.bodies.clear()

    def wait_for_names(self, *names: str) -> list[ReceivedSpan]:
        """All spans, once there is one at least of each of these names."""
        return self.wait_for(lambda spans: set(names) <= {span.name for span in spans})


def tree(spans: list[ReceivedSpan]) -> str:
    """A trace as text: each span under its parent, with its begin and duration in milliseconds."""
    known = {span.id for span in spans}
    start_ns = min(span.begin_ns for span in spans)

    def lines(span: ReceivedSpan, depth: int) -> list[str]:
        at_ms, took_ms = (span.begin_ns - start_ns) / 1e6, (span.end_ns - span.begin_ns) / 1e6
        error = f"  ERROR {span.error}" if span.error else ""
        line = f"{'  ' * depth + span.name:<44} {at_ms:9.2f} ms {took_ms:+9.2f} ms{error}"
        return [line, *(text for child in spans if child.parent_id == span.id for text in lines(child, depth + 1))]

    return "\n".join(text for span in spans if span.parent_id not in known for text in lines(span, 0))


def _span(span: Any, resource: dict[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        {pair.key: _value(pair.value) for pair in span.attributes},
        resource,
        [link.span_id.hex() for link in span.links],
        span.status.message if span.status.code == 2 else "",
        span.trace_state,
        [event.name for event in span.events],
    )


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind else None
