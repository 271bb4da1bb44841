"""Waits for a job on behalf of a client that holds the connection open."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Any

from fastapi import Request

from safelight.errors import JobCancelled, ShuttingDown
from safelight.jobs import Job
from safelight.server.dispatcher import Dispatcher


class OnDisconnect(StrEnum):
    """What becomes of a job whose client goes away."""

    CANCEL = "cancel"
    KEEP = "keep"


async def follow(
    request: Request,
    dispatcher: Dispatcher,
    job: Job,
    on_disconnect: OnDisconnect = OnDisconnect.CANCEL,
    timeout_s: float | None = None,
) -> bool:
    """Whether the job ended, well or not, within the time. Raises ``JobCancelled`` if the client went away first.

    ``ShuttingDown`` and ``LoadError`` mean that nobody will work on the job now. It is cancelled if the last client
    that waits for it leaves without its answer, unless that client chose to keep it or the server shuts down.
    """
    end = dispatcher.end(job)
    gone = asyncio.ensure_future(_disconnect(request))
    job.followers += 1
    keep = on_disconnect is OnDisconnect.KEEP
    try:
        either: set[asyncio.Future[Any]] = {end, gone}
        await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if end.done():
            end.result()
        elif gone.done():
            raise JobCancelled("the client closed the connection")
        else:
            keep = True  # it asked to wait no longer than this
        return end.done()
    except ShuttingDown:
        keep = True
        raise
    finally:
        gone.cancel()
        job.followers -= 1
        if not (keep or job.followers or job.status.is_terminal):
            dispatcher.abandon(job)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
