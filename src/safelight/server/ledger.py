"""``JobLedger``: every unfinished job, in memory as on disk."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TypeVar
from weakref import WeakValueDictionary

from safelight.errors import JobNotFinished, ModelNotFound, SafelightError, StorageFull, StorageUnavailable
from safelight.jobs import Job, JobError, JobRequest, JobStatus
from safelight.protocol import Succeeded
from safelight.server.changes import Changes
from safelight.server.database import IdempotencyKey
from safelight.server.ends import JobEnds
from safelight.server.metrics import Metrics
from safelight.server.queue import JobQueue
from safelight.server.running_jobs import RunningJobs
from safelight.server.store import JobStore

log = logging.getLogger(__name__)

T = TypeVar("T")

_STORAGE_PAUSE_S = 0.5
_STORAGE_ERRORS = (StorageFull, StorageUnavailable)


class JobLedger:
    """The moves of jobs. Each is made on disk first, so what a client was told survives a kill.

    Whoever waits for a job waits here; whoever works on one takes it from ``queue``.
    """

    def __init__(self, queue: JobQueue, store: JobStore, changes: Changes, metrics: Metrics) -> None:
        self.queue = queue
        self._store = store
        self._changes = changes
        self._metrics = metrics
        self._jobs: dict[str, Job] = {}
        self._running = RunningJobs()
        self._ends = JobEnds()
        self._stuck: set[object] = set()
        self._watched: WeakValueDictionary[str, Changes] = WeakValueDictionary()

    def __iter__(self) -> Iterator[Job]:
        """Waiting and running jobs."""
        return iter(list(self._jobs.values()))

    def __contains__(self, job: Job) -> bool:
        return job.id in self._jobs

    @property
    def is_stuck(self) -> bool:
        """Whether something that happened waits for a disk that does not take it now."""
        return bool(self._stuck)

    def count(self, status: JobStatus) -> int:
        """How many unfinished jobs have this status."""
        counts = {JobStatus.RUNNING: len(self._running), JobStatus.QUEUED: len(self._jobs) - len(self._running)}
        return counts.get(status, 0)

    def work_left(self, model: str) -> float:
        """What is left of the jobs of this model that run."""
        return self._running.work_of(model)

    @property
    def longest_wait_s(self) -> float:
        """Seconds since the oldest job that waits was accepted."""
        accepted_s = [job.created_s for job in self._jobs.values() if job.status is JobStatus.QUEUED]
        return max(time.time() - min(accepted_s), 0.0) if accepted_s else 0.0

    async def find(self, name: str, owner: str) -> Job | None:
        """The job of that owner with this id, or with this idempotency key, finished or not."""
        job = self._jobs.get(name)
        if job is not None:
            return job if job.request.owner == owner else None
        stored = await self._store.find(owner, name)
        return stored and self._jobs.get(stored.id, stored)

    async def page(self, owner: str, before: tuple[float, str], count: int, words: Sequence[str] = ()) -> list[Job]:
        """Jobs of that owner from before a creation time and id, newest first, whose prompt has all these words."""
        return [self._jobs.get(job.id, job) for job in await self._store.page(owner, before, count, words)]

    async def forget(self, job: Job) -> None:
        """Removes a job that has ended, with its pictures. Raises ``JobNotFinished``."""
        if not job.status.is_terminal or job in self:
            raise JobNotFinished(f"{job.id} has not ended yet: cancel it first")
        await self._store.forget(job)

    def end_of(self, job: Job) -> asyncio.Future[Job]:
        """The job once it has ended, or the error of ``interrupt``."""
        return self._ends.of(job)

    def interrupt(self, job: Job, error: SafelightError) -> None:
        """Those who wait for the job get an error instead; the job is not touched."""
        self._ends.interrupt(job, error)
        self.announce(job)

    def changes_of(self, job: Job) -> Changes:
        """Wakes those who hold it when this job changes, and nobody for any other job's sake."""
        return self._watched.setdefault(job.id, Changes())

    def announce(self, job: Job) -> None:
        """The job changed."""
        self._changes.announce()
        self._tell_watchers(job)

    def get_on(self, job: Job) -> None:
        """The job made progress: nothing can begin or end because of it."""
        self._running.get_on(job)
        self._changes.widest.announce()
        self._tell_watchers(job)

    def _tell_watchers(self, job: Job) -> None:
        if (changes := self._watched.get(job.id)) is not None:
            changes.announce()

    # --- moves ------------------------------------------------------------------------------------------------------

    async def accept(self, job: Job, idempotency: IdempotencyKey | None, files: Mapping[str, bytes]) -> Job:
        """The job, stored and in its reserved place, or the earlier job that has the key. Raises storage errors."""
        try:
            job_id = await self._store.add(job, idempotency, files)
        except BaseException:
            self.queue.release(job)
            raise
        if job_id != job.id:
            self.queue.release(job)
            earlier = self._jobs.get(job_id) or await self._store.get(job_id)
            assert earlier is not None
            return earlier
        self._enter(job)
        self.queue.put(job)
        self.announce(job)
        return job

    async def source_files(self, job: Job) -> list[bytes]:
        """The picture that the job changes, and its mask if it has one; none for a job that draws from nothing."""
        return await self._store.source_files(job) if job.params.source else []

    async def restore(self, resolved: Callable[[JobRequest], JobRequest]) -> int:
        """Takes up what a server before this one accepted; how many jobs that were.

        ``resolved`` gives a request the name that its model has now; if it raises ``ModelNotFound``, the job fails.
        """
        jobs = await self._until_stored(self._store.restore)
        for job in jobs:
            self._enter(job)
        for job in jobs:
            try:
                job.request = resolved(job.request)
                self.queue.restore(job)
            except ModelNotFound as error:
                await self.end(job, JobStatus.FAILED, JobError.of(error))
        self._changes.announce()
        return len(jobs)

    def _enter(self, job: Job) -> None:
        self._jobs[job.id] = job
        self._metrics.accepted(job)

    async def claim(self, job: Job) -> bool:
        """queued -> running; false if the disk does not take it now: the job waits on."""
        try:
            await self._store.claim(job)
        except _STORAGE_ERRORS:
            self.queue.put_back(job)
            await self._pause(job)
            return False
        self._running.enter(job)
        if job.attempt == 1 and job.started_s is not None:
            self._metrics.queue.observe(max(job.started_s - job.created_s, 0.0))
        self.announce(job)
        return True

    async def requeue(self, job: Job, crashes: int) -> None:
        """running -> queued: this attempt came to nothing."""
        if await self._until_stored(lambda: self._store.requeue(job, crashes)):
            self._running.leave(job)
            self.queue.put_back(job)
            self.announce(job)
        else:
            self._discard(job)

    async def end(self, job: Job, status: JobStatus, outcome: Succeeded | JobError) -> None:
        """The last move. A full disk or a held lock may delay it, but not undo it."""
        if not await self._until_stored(lambda: self._store.finish(job, status, outcome)):
            return self._discard(job)
        together = f" by workers {', '.join(map(str, job.workers))} together" if len(job.workers) > 1 else ""
        name = job.request.request_id
        log.info("%s of %s %s after %d steps%s", job.id, name, status, job.step, together, extra=job.ids)
        del self._jobs[job.id]
        self._running.leave(job)
        self._metrics.ended(job)
        self._ends.ended(job)
        self.announce(job)

    def _discard(self, job: Job) -> None:
        sentence = "%s: what attempt %d came to is not current any more and was discarded"
        log.error(sentence, job.id, job.attempt, extra=job.ids)
        self._metrics.fenced.inc()
        self.announce(job)

    async def _pause(self, job: Job) -> None:
        """Nothing begins meanwhile."""
        self._stuck.add(job)
        try:
            await asyncio.sleep(_STORAGE_PAUSE_S)
        finally:
            self._stuck.discard(job)
            self._changes.announce()

    async def _until_stored(self, change: Callable[[], Awaitable[T]]) -> T:
        try:
            while True:
                try:
                    return await change()
                except _STORAGE_ERRORS:
                    self._stuck.add(change)
                    await asyncio.sleep(_STORAGE_PAUSE_S)
        finally:
            self._stuck.discard(change)
