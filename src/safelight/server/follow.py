"""Waits for a job on behalf of a client that holds the connection open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Any

from fastapi import Request

from safelight.errors import JobCancelled, ShuttingDown
from safelight.jobs import Job
from safelight.server.dispatcher import Dispatcher

_QUIET_S = 15.0


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
        _leave(dispatcher, job, keep=keep)


async def watch(
    dispatcher: Dispatcher, job: Job, on_disconnect: OnDisconnect = OnDisconnect.KEEP
) -> AsyncIterator[bool]:
    """True at once and after each change of the job, the last time when it has ended; false when all is quiet.

    For answers that stream: whoever sends them closes the iterator when the client goes. Raises as ``follow``.
    """
    end = dispatcher.end(job)
    changes = dispatcher.changes_of(job)
    job.followers += 1
    keep = on_disconnect is OnDisconnect.KEEP
    try:
        while True:
            seen, has_ended = changes.count, end.done()
            yield True
            if has_ended:
                end.result()
                return
            while changes.count == seen and not end.done():
                if not await changes.wait(_QUIET_S):
                    yield False
    except ShuttingDown:
        keep = True
        raise
    finally:
        _leave(dispatcher, job, keep=keep)


def _leave(dispatcher: Dispatcher, job: Job, *, keep: bool) -> None:
    job.followers -= 1
    if not (keep or job.followers or job.status.is_terminal):
        dispatcher.abandon(job)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
