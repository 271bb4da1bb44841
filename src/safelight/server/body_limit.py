"""Bounds the bytes of a request body, counted as they arrive; starlette's own middleware answers in plain text."""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware: 413 as soon as the path's limit is announced or passed, without reading further."""

    def __init__(self, app: ASGIApp, limit_bytes_of: Callable[[str], int]) -> None:
        self._app = app
        self._limit_bytes_of = limit_bytes_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        limit_bytes = self._limit_bytes_of(scope["path"])
        announced = Headers(scope=scope).get("content-length", "")
        refuse_now = announced.isdecimal() and int(announced[:20]) > limit_bytes
        too_large = HTTPException(413, f"the body is larger than {limit_bytes} bytes")
        received_bytes = 0

        async def receive_within_limit() -> Message:
            nonlocal received_bytes
            if refuse_now:
                raise too_large
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > limit_bytes:
                raise too_large
            return message

        await self._app(scope, receive_within_limit, send)
