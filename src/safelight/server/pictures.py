"""Sends result files: as they are, or as base64 inside JSON, piece by piece, so that a slow reader costs no memory."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import BinaryIO

from fastapi.responses import Response, StreamingResponse

from safelight.errors import NotFound

_PIECE_BYTES = 3 * 16 * 1024
"""Read at once; divisible by three, so that the base64 of pieces joins to the base64 of the file."""


class Base64File:
    """Stands in a body for the base64 of this file."""

    def __init__(self, path: Path) -> None:
        self.path = path


Part = bytes | Base64File


async def file_response(path: Path, media_type: str, headers: dict[str, str]) -> Response:
    """One file as the whole body. Raises ``NotFound`` if it is no longer kept."""
    (stream,) = await asyncio.to_thread(_open, [path])
    headers = headers | {"content-length": str(_size(stream))}
    return StreamingResponse(_pieces(stream, encoded=False), media_type=media_type, headers=headers)


async def json_response(parts: Sequence[Part], headers: dict[str, str]) -> Response:
    """JSON whose parts are bytes and files. Raises ``NotFound`` if a file is no longer kept."""
    streams = await asyncio.to_thread(_open, [part.path for part in parts if isinstance(part, Base64File)])
    length = sum(len(part) for part in parts if isinstance(part, bytes)) + sum(map(_base64_size, streams))
    headers = headers | {"content-length": str(length)}
    return StreamingResponse(_joined(parts, streams), media_type="application/json", headers=headers)


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
        return base64.b64encode(piece) if encoded else piece

    with stream:
        while piece := await asyncio.to_thread(read):
            yield piece


def _open(paths: Sequence[Path]) -> list[BinaryIO]:
    """All or none: once the head is sent it is too late for an error. An open file outlives its deletion."""
    with contextlib.ExitStack() as opened:
        try:
            streams: list[BinaryIO] = [opened.enter_context(path.open("rb")) for path in paths]
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
