"""What a worker writes to its stderr, as lines of a JSON log: its own lines, and those of libraries and crashes."""

from __future__ import annotations

import asyncio
import logging

from safelight.logs import RAW

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 1024 * 1024

_OURS = b'{"ts": '


async def relay(stream: asyncio.StreamReader, worker_id: int) -> None:
    """Until the worker and whatever it started have closed it."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            log.warning("a line of more than %d bytes was left out", MAX_LINE_BYTES, extra={"worker_id": worker_id})
            continue
        if not line:
            return
        if line.startswith(_OURS):
            raw = {"levelno": logging.INFO, RAW: line.decode().rstrip("\n")}
            logging.getLogger().handle(logging.makeLogRecord(raw))
        elif text := line.decode(errors="replace").rstrip():
            log.warning("%s", text, extra={"worker_id": worker_id})
