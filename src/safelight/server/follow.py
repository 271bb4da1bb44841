"""Waits for a job on behalf of a client that holds the connection open, and cancels it if the client leaves."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request

from safelight.errors import JobCancelled
from safelight.jobs import Job
from safelight.protocol import Succeeded
from safelight.server.dispatcher import Dispatcher


async def follow(request: Request, dispatcher: Dispatcher, job: Job) -> Succeeded:
    """The job's images. Raises the error it ended with, or ``JobCancelled`` if the client went away first."""
    result = dispatcher.result(job)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        either: set[asyncio.Future[Any]] = {result, gone}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise JobCancelled("the client closed the connection")
        return result.result()
    finally:
        gone.cancel()
        if not result.done():
            dispatcher.cancel(job)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
