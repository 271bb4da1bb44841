"""Tells everyone who waits for a job how it ended."""

from __future__ import annotations

import asyncio

from safelight.errors import SafelightError
from safelight.jobs import Job


class JobEnds:
    """One future per job that somebody waits for, shared by all who do: a cancelled waiter must shield it."""

    def __init__(self) -> None:
        self._futures: dict[str, asyncio.Future[Job]] = {}

    def of(self, job: Job) -> asyncio.Future[Job]:
        """The job once it has ended, or the error by which waiting for it was interrupted."""
        if job.status.is_terminal:
            future: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
            future.set_result(job)
            return future
        return self._futures.setdefault(job.id, asyncio.get_running_loop().create_future())

    def ended(self, job: Job) -> None:
        """The job has its last status."""
        if (future := self._futures.pop(job.id, None)) is not None:
            future.set_result(job)

    def interrupt(self, job: Job, error: SafelightError) -> None:
        """Those who wait for the job get an error instead; the job is not touched."""
        if (future := self._futures.pop(job.id, None)) is not None:
            future.set_exception(error)
            future.exception()  # seen: a client that went away does not ask for it
