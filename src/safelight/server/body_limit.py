"""Bounds the bytes of a request body, counted as they arrive; starlette's own middleware answers in plain text."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware: 413 as soon as ``limit_bytes`` are announced or passed, without reading further."""

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        announced = Headers(scope=scope).get("content-length", "")
        refuse_now = announced.isdecimal() and int(announced[:20]) > self._limit_bytes
        too_large = HTTPException(413, f"the body is larger than {self._limit_bytes} bytes")
        received_bytes = 0

        async def receive_within_limit() -> Message:
            nonlocal received_bytes
            if refuse_now:
                raise too_large
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > self._limit_bytes:
                raise too_large
            return message

        await self._app(scope, receive_within_limit, send)
