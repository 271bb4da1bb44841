"""What a worker writes to its stderr, as lines of our log: its own lines, and those of libraries and crashes."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable

from safelight.logs import RAW

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 1024 * 1024

_OURS = b'{"ts": '


async def relay(stream: asyncio.StreamReader, on_line: Callable[[bytes], None]) -> None:
    """Until the worker and whatever it started have closed it."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            line = b"a line of more than %d bytes was left out\n" % MAX_LINE_BYTES
        if not line:
            return
        on_line(line)


def log_line(line: bytes, worker_id: int) -> None:
    """Into a JSON log."""
    if line.startswith(_OURS):
        raw = {"levelno": logging.INFO, RAW: line.decode().rstrip("\n")}
        logging.getLogger().handle(logging.makeLogRecord(raw))
    elif text := line.decode(errors="replace").rstrip():
        log.warning("%s", text, extra={"worker_id": worker_id})


def print_line(line: bytes) -> None:
    """Beside a log of text, as a worker on this machine would write it itself."""
    sys.stderr.write(line.decode(errors="replace"))
