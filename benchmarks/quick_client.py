"""HTTP/1.1 over plain asyncio, for load that must cost less than the server: a keep-alive connection at a time.

It takes answers with a content length only, which is what routes without a stream send.
"""

from __future__ import annotations

import asyncio
from typing import Self

_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length:"


class QuickConnection(asyncio.Protocol):
    """One connection; one request at a time. Raises ``ConnectionError`` once the server has closed it."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._body_start = 0
        self._missing = 0
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    @classmethod
    async def open(cls, host: str, port: int) -> Self:
        """Connected."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        return connection

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to a whole request."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the server closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """Idempotent."""
        if self._transport is not None:
            self._transport.close()

    # --- what asyncio calls -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._body_start:
            end = self._received.find(_HEAD_END)
            if end < 0:
                return
            self._body_start = end + len(_HEAD_END)
            head = bytes(self._received[:end]).lower()
            length = head[head.index(_LENGTH) + len(_LENGTH) :].partition(b"\r\n")[0]
            self._missing = self._body_start + int(length)
        if len(self._received) >= self._missing:
            status, body = int(self._received[9:12]), bytes(self._received[self._body_start : self._missing])
            self._received.clear()
            self._body_start = 0
            if self._answer is not None and not self._answer.done():
                self._answer.set_result((status, body))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("the server closed the connection"))


def post(path: str, body: bytes, *headers: str) -> bytes:
    """The bytes of a request with a JSON body."""
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json", *headers]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body
