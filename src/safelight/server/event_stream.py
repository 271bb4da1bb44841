"""Server-sent events: what every stream of this server has in common.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping

from fastapi.responses import StreamingResponse

PING = b": ping\n"
"""A comment without the blank line that would end an event: some clients make an empty event of that."""

_LINE_END = re.compile(r"\r\n|\r|\n")
"""What the format takes for one; ``str.splitlines`` knows more, and would cut JSON at them."""

_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
"""The second keeps nginx from holding events back."""


def event_stream(events: AsyncIterator[bytes], headers: Mapping[str, str] | None = None) -> StreamingResponse:
    """The answer that sends these events as they come."""
    return StreamingResponse(events, headers=_HEADERS | dict(headers or {}), media_type="text/event-stream")


def event(name: str, data: str, event_id: str | None = None) -> bytes:
    """One event; ``data`` may have several lines."""
    lines = "".join(f"data: {line}\n" for line in _LINE_END.split(data))
    return (f"id: {event_id}\n" if event_id else "").encode() + f"event: {name}\n{lines}\n".encode()
