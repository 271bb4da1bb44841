"""Gives every request an id, takes a client's own, and sends it back on every answer, errors included."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from safelight.logs import about

_HEADER = "x-request-id"
_ADDED = "safelight.headers"
_WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestId:
    """ASGI middleware. An id that could break a log line is replaced, not refused."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        asked = Headers(scope=scope).get(_HEADER, "")
        request_id = asked if _WELL_FORMED.fullmatch(asked) else f"req_{uuid.uuid4().hex}"
        scope["safelight.request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update({_HEADER: request_id} | scope.get(_ADDED, {}))
            await send(message)

        with about(request_id=request_id):
            await self._app(scope, receive, send_with_id)


def add_headers(scope: Scope, headers: dict[str, str]) -> None:
    """Has the answer to this request carry them, error or not."""
    scope.setdefault(_ADDED, {}).update(headers)


def request_id_of(scope: Scope) -> str:
    """The id that ``RequestId`` gave this request."""
    return str(scope.get("safelight.request_id", "unknown"))
