"""Takes jobs off the queue, hands them to idle workers, follows them to a terminal status, drains."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Sequence

from safelight.errors import InternalError, JobCancelled, SafelightError, ShuttingDown, error_from_code
from safelight.jobs import Job, JobStatus
from safelight.params import GenerationParams
from safelight.protocol import Cancelled, Failed, JobOutcome, Succeeded
from safelight.server.changes import Changes
from safelight.server.queue import JobQueue
from safelight.server.worker import Worker, load_failure

log = logging.getLogger(__name__)

_FIRST_GUESS_S = 2.0
_CANCEL_GRACE_S = 5.0


class Dispatcher:
    """Owns every job from ``submit`` to its end. One ``serve`` task per worker, one ``watch`` task in all."""

    def __init__(self, queue: JobQueue, workers: Sequence[Worker], changes: Changes) -> None:
        self._queue = queue
        self._workers = workers
        self._changes = changes
        self._results: dict[str, asyncio.Future[Succeeded]] = {}
        self._job_seconds = _FIRST_GUESS_S
        self._closed = False

    @property
    def running_count(self) -> int:
        return sum(worker.running is not None for worker in self._workers)

    def submit(self, params: GenerationParams, request_id: str = "") -> Job:
        """Accepts a job, or raises ``QueueFull``, ``ShuttingDown`` or, if no worker can ever take it, ``LoadError``."""
        if self._closed:
            raise ShuttingDown("the server is shutting down and takes no new work", retry_after_s=5)
        if failure := load_failure(self._workers):
            raise failure
        job = Job(f"job_{uuid.uuid4().hex}", params, request_id)
        self._queue.put(job, self._retry_after_s())
        self._results[job.id] = asyncio.get_running_loop().create_future()
        self._changes.announce()
        return job

    def result(self, job: Job) -> asyncio.Future[Succeeded]:
        """The job's images to come, or the error it ends with. To be asked for before the loop turns again."""
        return self._results[job.id]

    def cancel(self, job: Job) -> None:
        """A waiting job ends at once, a running one at its next denoising step, a finished one not at all."""
        if self._queue.remove(job):
            self._end(job, JobStatus.CANCELLED, JobCancelled("the job was cancelled while it waited"))
        for worker in self._workers:
            worker.cancel(job)

    # --- tasks ------------------------------------------------------------------------------------------------------

    async def serve(self, worker: Worker) -> None:
        """Gives this worker one job after the other, for ever."""
        while True:
            while not worker.is_idle:
                await self._changes.wait()
            job = await self._queue.take()
            if worker.is_idle:
                await self._run(worker, job)
            else:
                self._queue.put_back(job)

    async def watch(self) -> None:
        """Fails what waits once no worker will ever be ready by itself: nobody should wait for nothing."""
        while True:
            await self._changes.wait()
            if failure := load_failure(self._workers):
                self._fail_waiting(failure)

    async def _run(self, worker: Worker, job: Job) -> None:
        job.move_to(JobStatus.RUNNING)
        job.attempt += 1
        start_s = time.monotonic()

        def on_step(step: int) -> None:
            job.step = step
            self._changes.announce()

        try:
            outcome = await worker.run(job, on_step)
        except SafelightError as error:
            return self._end(job, JobStatus.FAILED, error)
        except Exception:
            log.exception("%s failed through a defect", job.id)
            return self._end(job, JobStatus.FAILED, InternalError("the image could not be made; the log says why"))
        self._finish(job, outcome)
        self._job_seconds += 0.2 * (time.monotonic() - start_s - self._job_seconds)

    def _finish(self, job: Job, outcome: JobOutcome) -> None:
        match outcome:
            case Succeeded():
                self._end(job, JobStatus.SUCCEEDED, outcome)
            case Failed(code=code, message=message):
                self._end(job, JobStatus.FAILED, error_from_code(code, message))
            case Cancelled() if self._closed:
                self._end(job, JobStatus.CANCELLED, _shut_down("finished"))
            case Cancelled():
                self._end(job, JobStatus.CANCELLED, JobCancelled(f"the job was cancelled after step {job.step}"))

    def _end(self, job: Job, status: JobStatus, result: Succeeded | SafelightError) -> None:
        job.move_to(status)
        log.info("%s of %s %s after %d steps", job.id, job.request_id, status, job.step)
        future = self._results.pop(job.id)
        if isinstance(result, Succeeded):
            future.set_result(result)
        else:
            future.set_exception(result)
            future.exception()  # seen: a client that went away does not ask for it
        self._changes.announce()

    def _fail_waiting(self, error: SafelightError) -> None:
        for job in self._queue.clear():
            self._end(job, JobStatus.FAILED, error)

    def _retry_after_s(self) -> int:
        ready = max(sum(worker.is_idle or worker.running is not None for worker in self._workers), 1)
        return min(max(math.ceil(self._job_seconds / ready), 1), 60)

    # --- drain ------------------------------------------------------------------------------------------------------

    async def drain(self, grace_period_s: float) -> None:
        """Admits nothing, answers what waits, lets running jobs finish in time and cancels the rest."""
        self._closed = True
        self._fail_waiting(_shut_down("began"))
        await self._wait_until_nothing_runs(grace_period_s)
        for worker in self._workers:
            if worker.running is not None:
                worker.cancel(worker.running)
        await self._wait_until_nothing_runs(_CANCEL_GRACE_S)

    def abandon(self) -> None:
        """Answers whoever still waits: the workers are gone."""
        for future in self._results.values():
            future.set_exception(_shut_down("finished"))
            future.exception()
        self._results.clear()

    async def _wait_until_nothing_runs(self, timeout_s: float) -> None:
        end_s = time.monotonic() + timeout_s
        while self.running_count and (left_s := end_s - time.monotonic()) > 0:
            await self._changes.wait(left_s)


def _shut_down(before: str) -> ShuttingDown:
    return ShuttingDown(f"the server shut down before the job {before}", retry_after_s=5)
