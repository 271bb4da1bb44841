"""Sends pictures: as they are, or as base64 inside JSON, piece by piece, so that a slow reader costs no memory and the
loop never encodes megabytes at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pybase64
from fastapi.responses import Response, StreamingResponse

from safelight.errors import NotFound

_PIECE_BYTES = 3 * 64 * 1024
"""Read at once; divisible by three, so that the base64 of pieces joins to the base64 of the whole."""


class Base64:
    """Stands in a body for the base64 of a file, or of bytes that are in memory."""

    def __init__(self, source: Path | bytes) -> None:
        self._source = source

    def open(self) -> BinaryIO:
        """Raises ``FileNotFoundError``."""
        return io.BytesIO(self._source) if isinstance(self._source, bytes) else self._source.open("rb")


Part = bytes | Base64


async def file_response(path: Path, media_type: str, headers: dict[str, str]) -> Response:
    """One file as the whole body. Raises ``NotFound`` if it is no longer kept."""
    (stream,) = await asyncio.to_thread(_open, [Base64(path)])
    headers = headers | {"content-length": str(_size(stream))}
    return StreamingResponse(_pieces(stream, encoded=False), media_type=media_type, headers=headers)


async def json_response(parts: Sequence[Part], headers: dict[str, str], status_code: int = 200) -> Response:
    """JSON made of parts. Raises ``NotFound`` if a file is no longer kept."""
    streams = await asyncio.to_thread(_open, [part for part in parts if isinstance(part, Base64)])
    length = sum(len(part) for part in parts if isinstance(part, bytes)) + sum(map(_base64_size, streams))
    headers = headers | {"content-length": str(length)}
    return StreamingResponse(_joined(parts, streams), status_code, headers, media_type="application/json")


async def stream_parts(parts: Sequence[Part]) -> AsyncIterator[bytes]:
    """The same inside a longer body. Raises ``NotFound`` before the first piece."""
    streams = await asyncio.to_thread(_open, [part for part in parts if isinstance(part, Base64)])
    async for piece in _joined(parts, streams):
        yield piece


async def _joined(parts: Sequence[Part], streams: list[BinaryIO]) -> AsyncIterator[bytes]:
    left = iter(streams)
    with contextlib.ExitStack() as open_files:
        for stream in streams:
            open_files.enter_context(stream)
        for part in parts:
            if isinstance(part, bytes):
                yield part
                continue
            async for piece in _pieces(next(left), encoded=True):
                yield piece


async def _pieces(stream: BinaryIO, *, encoded: bool) -> AsyncIterator[bytes]:
    def read() -> bytes:
        piece = stream.read(_PIECE_BYTES)
        return pybase64.b64encode(piece) if encoded else piece

    with stream:
        while piece := await asyncio.to_thread(read):
            yield piece


def _open(parts: Sequence[Base64]) -> list[BinaryIO]:
    """All or none: once the head is sent it is too late for an error. An open file outlives its deletion."""
    with contextlib.ExitStack() as opened:
        try:
            streams: list[BinaryIO] = [opened.enter_context(part.open()) for part in parts]
        except FileNotFoundError:
            raise NotFound("the images of this job are no longer kept") from None
        opened.pop_all()
        return streams


def _size(stream: BinaryIO) -> int:
    size = stream.seek(0, 2)
    stream.seek(0)
    return size


def _base64_size(stream: BinaryIO) -> int:
    return 4 * -(-_size(stream) // 3)
