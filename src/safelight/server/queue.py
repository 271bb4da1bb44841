"""The jobs that wait: bounded, in order, cancellable."""

from __future__ import annotations

import asyncio
from collections import deque

from safelight.errors import QueueFull
from safelight.jobs import Job


class JobQueue:
    """First come, first served. ``limit`` bounds what may wait; jobs that run do not count."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._jobs: deque[Job] = deque()
        self._arrived = asyncio.Event()

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job, retry_after_s: int) -> None:
        """Raises ``QueueFull``, with that ``Retry-After``, at the limit."""
        if len(self._jobs) >= self.limit:
            raise QueueFull(f"{len(self._jobs)} jobs wait already, which is the limit", retry_after_s=retry_after_s)
        self._jobs.append(job)
        self._arrived.set()

    def put_back(self, job: Job) -> None:
        """Returns a job that was taken but not started to the head of the queue."""
        self._jobs.appendleft(job)
        self._arrived.set()

    async def take(self) -> Job:
        """Waits for a job and removes it from the head."""
        while not self._jobs:
            self._arrived.clear()
            await self._arrived.wait()
        return self._jobs.popleft()

    def remove(self, job: Job) -> bool:
        """Whether the job waited, and now does not."""
        try:
            self._jobs.remove(job)
        except ValueError:
            return False
        return True

    def clear(self) -> list[Job]:
        """Removes and returns everything that waits."""
        jobs = list(self._jobs)
        self._jobs.clear()
        return jobs
