"""Spans: where the time of a request goes, over both processes. Here they are recorded by nobody, at no cost.

``otlp.py`` records them; it is imported only where a collector is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

TraceContext = Mapping[str, str]
"""The ``traceparent`` and ``tracestate`` of a span, as W3C's Trace Context has them; empty: not traced."""

NOT_TRACED: TraceContext = MappingProxyType({})

Attributes = Mapping[str, str | int | float | bool]


class Span:
    """A piece of work that has begun; times are Unix times in seconds."""

    @property
    def context(self) -> TraceContext:
        """What its children begin with."""
        return NOT_TRACED

    def note(self, attributes: Attributes) -> None:
        """Adds attributes."""

    def fail(self, code: str, message: str) -> None:
        """It came to nothing, for this reason."""

    def end(self, end_s: float | None = None) -> None:
        """It is over, now or at that time."""


NO_SPAN = Span()


class Tracing:
    """What begins spans in one process; ``provider`` is OpenTelemetry's, for libraries that have spans of their own."""

    provider: Any = None

    def begin(
        self,
        name: str,
        parent: TraceContext,
        attributes: Attributes | None = None,
        *,
        start_s: float | None = None,
        links: Sequence[TraceContext] = (),
    ) -> Span:
        """A child of ``parent``, from now or that time on; nothing is recorded of what has no parent."""
        return NO_SPAN

    def request_span(self) -> Span:
        """That of the HTTP request which the caller is in."""
        return NO_SPAN

    def close(self) -> None:
        """Sends what is left, for a moment at most."""


NO_TRACING = Tracing()
