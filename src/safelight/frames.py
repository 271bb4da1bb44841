"""Frames over a socketpair: a 4-byte big-endian length and that many bytes each.

asyncio's streams stop the sender every 128 KiB and copy a picture three times; here it is received into its place.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from typing import cast

MAX_FRAME_BYTES = 512 * 1024 * 1024

_LENGTH = struct.Struct(">I")
_PIECE_BYTES = 64 * 1024
_SOCKET_BYTES = 4 * 1024 * 1024
"""Of a picture, so that it is written in one go; the system may allow less."""
_UNREAD_BYTES = 1024 * 1024
"""The sender waits while more than this was received and not taken."""


class FrameTooLarge(Exception):
    """More than ``MAX_FRAME_BYTES``, here or announced by the other side; what follows then cannot be told apart."""


class FrameSocket(asyncio.BufferedProtocol):
    """One end. Made by ``open``; only one task may ``receive``."""

    def __init__(self) -> None:
        self._piece = memoryview(bytearray(_PIECE_BYTES))
        self._piece_end = 0
        self._frame = memoryview(b"")
        self._frame_end = 0
        self._whole: deque[memoryview] = deque()
        self._unread_bytes = 0
        self._too_large_bytes = 0
        self._is_over = False
        self._is_paused = False
        self._changed = asyncio.Event()
        self._sent = asyncio.Event()
        self._sent.set()

    @classmethod
    async def open(cls, sock: socket.socket) -> FrameSocket:
        """Takes over a connected ``sock``."""
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BYTES)
        _, protocol = await asyncio.get_running_loop().create_connection(cls, sock=sock)
        return protocol

    def send(self, body: bytes) -> None:
        """Queues a frame; never blocks. Raises ``FrameTooLarge``."""
        if len(body) > MAX_FRAME_BYTES:
            raise FrameTooLarge(f"it has {len(body)} bytes")
        self._transport.writelines((_LENGTH.pack(len(body)), body))

    async def flush(self) -> None:
        """Waits until what was sent has left this process, or the other side is gone."""
        await self._sent.wait()

    async def receive(self) -> memoryview | None:
        """The body of the next frame, ``None`` once the other side is gone. Raises ``FrameTooLarge``."""
        while not self._whole:
            if self._too_large_bytes:
                raise FrameTooLarge(f"a frame of {self._too_large_bytes} bytes was announced")
            if self._is_over:
                return None
            self._changed.clear()
            await self._changed.wait()
        body = self._whole.popleft()
        self._unread_bytes -= len(body)
        self._pause_or_resume()
        return body

    def close(self) -> None:
        """Closes this end; idempotent."""
        self._transport.close()

    # --- what asyncio calls -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)

    def get_buffer(self, sizehint: int) -> memoryview:
        """The rest of a large frame is received into its place, everything else into the piece."""
        if self._frame:
            return self._frame[self._frame_end :]
        return self._piece[self._piece_end :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._frame:
            self._frame_end += nbytes
            if self._frame_end == len(self._frame):
                self._take(self._frame)
                self._frame, self._frame_end = memoryview(b""), 0
        else:
            self._piece_end += nbytes
            self._cut()
        self._pause_or_resume()

    def eof_received(self) -> None:
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def pause_writing(self) -> None:
        self._sent.clear()

    def resume_writing(self) -> None:
        self._sent.set()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _cut(self) -> None:
        """Takes the whole frames out of the piece; what is left of it moves to its beginning, or into its frame."""
        start = 0
        while self._piece_end - start >= _LENGTH.size and not self._too_large_bytes:
            (length,) = _LENGTH.unpack_from(self._piece, start)
            if length > MAX_FRAME_BYTES:
                self._too_large_bytes = length
                return self._changed.set()
            body = start + _LENGTH.size
            here = min(length, self._piece_end - body)
            if here < length and length > _PIECE_BYTES - _LENGTH.size:
                self._frame, self._frame_end = memoryview(bytearray(length)), here
                self._frame[:here] = self._piece[body : self._piece_end]
                start = self._piece_end
            elif here < length:
                break
            else:
                self._take(memoryview(bytes(self._piece[body : body + length])))
                start = body + length
        left = self._piece_end - start
        if start:
            self._piece[:left] = self._piece[start : self._piece_end]
        self._piece_end = left

    def _take(self, body: memoryview) -> None:
        self._whole.append(body)
        self._unread_bytes += len(body)
        self._changed.set()

    def _pause_or_resume(self) -> None:
        is_full = self._unread_bytes > _UNREAD_BYTES or bool(self._too_large_bytes)
        if is_full != self._is_paused and not self._transport.is_closing():
            self._is_paused = is_full
            if is_full:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _end(self) -> None:
        self._is_over = True
        self._changed.set()
        self._sent.set()
