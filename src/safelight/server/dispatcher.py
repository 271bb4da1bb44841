"""Admits jobs, hands them to workers, sees them through whoever dies on the way, and drains."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from safelight.errors import JobCancelled, SafelightError, ShuttingDown, WorkerCrashed
from safelight.jobs import Job, JobError, JobRequest, JobStatus
from safelight.logs import about
from safelight.protocol import Cancelled, Failed, JobOutcome, Succeeded, Unfit
from safelight.server.attempt import Attempt
from safelight.server.changes import Changes
from safelight.server.database import IdempotencyKey
from safelight.server.job_spans import JobSpans
from safelight.server.ledger import JobLedger
from safelight.server.metrics import Metrics
from safelight.server.pace import Pace
from safelight.server.worker import Worker, load_failure
from safelight.tracing import NO_TRACING, Tracing

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_CRASHES = 3

_HAND_BACK_S = 0.5


class Dispatcher:
    """Between the routes and the workers. One ``serve`` task, one ``watch`` task, and one task per running job."""

    def __init__(
        self,
        ledger: JobLedger,
        workers: Sequence[Worker],
        changes: Changes,
        metrics: Metrics,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._ledger = ledger
        self._queue = ledger.queue
        self._workers = workers
        self._changes = changes
        self._metrics = metrics
        self._pace = Pace()
        self._spans = JobSpans(tracing)
        self._background: set[asyncio.Task[Any]] = set()
        self._closed = False

    # --- for the routes ---------------------------------------------------------------------------------------------

    async def submit(
        self,
        request: JobRequest,
        idempotency: IdempotencyKey | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> Job:
        """Accepts a job: it is on disk when this returns, with the files of its source. With a key that is known,
        returns that key's job.

        Raises ``QueueFull``, ``ShuttingDown``, a storage error, or, if no worker can ever take it, ``LoadError``.
        """
        job = Job(f"job_{uuid.uuid4().hex}", request, created_s=time.time())
        try:
            self._refuse_if_closed()
            self._queue.reserve(job, self._retry_after_s())
            return await self._keep(self._ledger.accept(job, idempotency, files or {}))
        except SafelightError as error:
            self._metrics.refused.labels(error.code).inc()
            raise

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise ShuttingDown("the server is shutting down and takes no new work", retry_after_s=5)
        if failure := load_failure(self._workers):
            raise failure

    def end(self, job: Job) -> asyncio.Future[Job]:
        """The job once it has ended. Raises ``ShuttingDown`` or ``LoadError`` if it is kept, but nobody works on it."""
        end = self._ledger.end_of(job)
        if job.status is JobStatus.QUEUED and (reason := self._why_it_waits(job)):
            self._ledger.interrupt(job, reason)
        return end

    def changes_of(self, job: Job) -> Changes:
        """As ``JobLedger.changes_of``."""
        return self._ledger.changes_of(job)

    def _why_it_waits(self, job: Job) -> SafelightError | None:
        """What keeps a waiting job from being done before someone does something about it."""
        return _kept(job) if self._closed else load_failure(self._workers)

    async def cancel(self, job: Job, reason: str = "api") -> None:
        """A waiting job ends at once, a running one at its next denoising step, a finished one not at all."""
        if self._queue.remove(job):
            self._metrics.cancelled.labels(reason).inc()
            error = JobCancelled("the job was cancelled while it waited")
            await self._keep(self._ledger.end(job, JobStatus.CANCELLED, JobError.of(error)))
        elif job in self._ledger and not job.is_cancel_requested:
            job.is_cancel_requested = True
            self._metrics.cancelled.labels(reason).inc()
            for worker in self._workers:
                worker.cancel(job)

    def abandon(self, job: Job) -> None:
        """As ``cancel``, for a client that does not wait for it."""
        if not self._closed:
            self._let_run(self.cancel(job, "disconnect"), f"cancel {job.id}")

    def position(self, job: Job) -> int | None:
        """How many jobs will be taken before it; ``None`` if it does not wait."""
        return self._queue.position(job)

    def eta_s(self, job: Job) -> float | None:
        """Seconds until the job will have ended, if it can be told; ``None`` before anything was measured."""
        if job.status is JobStatus.RUNNING:
            return self._pace.seconds(self._work_until_end(job))
        place = self._queue.position(job) or 0
        before = sum(waiting.params.work for waiting, _ in zip(self._queue, range(place), strict=False))
        running = sum(_work_left(other) for other in self._ledger if other.status is JobStatus.RUNNING)
        return self._pace.seconds((before + running) / self._serving_count + job.params.work)

    def _work_until_end(self, job: Job) -> float:
        """What its worker does until then: jobs that share its steps get on as fast as it does, or end sooner."""
        mates = next((w.jobs_on_device for w in self._workers if job in w.jobs_on_device), [job])
        return sum(min(_work_left(mate), _work_left(job)) for mate in mates)

    def _retry_after_s(self) -> int:
        return min(max(math.ceil(self._pace.job_seconds / self._serving_count), 1), 60)

    @property
    def _serving_count(self) -> int:
        return max(sum(worker.is_serving for worker in self._workers), 1)

    # --- tasks ------------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Hands the head of the queue to a worker as soon as one admits it, for ever."""
        while True:
            if (job := self._queue.head) is not None and (worker := self._worker_for(job)) is not None:
                await self._begin(self._queue.take(), worker)
            else:
                await self._changes.wait()

    def _worker_for(self, job: Job) -> Worker | None:
        """The least busy worker that admits it: an idle device is better than a shared one."""
        if self._closed or self._ledger.is_stuck:  # results that wait for the disk wait in memory
            return None
        admitting = [worker for worker in self._workers if worker.admits(job)]
        return min(admitting, key=lambda worker: (len(worker.jobs_on_device), len(worker.jobs)), default=None)

    async def _begin(self, job: Job, worker: Worker) -> None:
        """One claim after the other: where the disk refuses one, the next would overtake it."""
        worker.reserve(job)
        is_claimed = False
        try:
            is_claimed = await self._ledger.claim(job)
        finally:
            if not is_claimed:
                worker.release(job)
        if is_claimed:
            with about(**job.ids, worker_id=worker.id):
                self._let_run(self._run(job, worker), f"run {job.id}")

    async def watch(self) -> None:
        """Tells those who wait once no worker will ever be ready by itself. Their jobs are kept."""
        while True:
            await self._changes.wait()
            if failure := load_failure(self._workers):
                self._interrupt_waiting(failure)

    def _interrupt_waiting(self, error: SafelightError | None = None) -> None:
        for job in self._ledger:
            if job.status is JobStatus.QUEUED:
                self._ledger.interrupt(job, error or _kept(job))

    async def _run(self, job: Job, worker: Worker) -> None:
        span = self._spans.begin(job, worker)
        attempt = Attempt(job, worker, self._ledger, self._metrics, span.context)
        try:
            outcome = await attempt.run()
        finally:
            worker.release(job)
        with self._spans.ending(job, span, outcome):
            await self._settle(job, outcome)
        if isinstance(outcome, Succeeded):
            self._pace.measured(job.params.work, attempt.device_s)

    async def _settle(self, job: Job, outcome: JobOutcome | WorkerCrashed) -> None:
        """What one attempt came to."""
        match outcome:
            case Succeeded():
                await self._ledger.end(job, JobStatus.SUCCEEDED, outcome)
            case Failed(code=code, message=message):
                await self._ledger.end(job, JobStatus.FAILED, JobError(code, message))
            case Cancelled() if job.is_cancel_requested:
                await self._ledger.end(job, JobStatus.CANCELLED, _cancelled(job))
            case Cancelled():
                await self._requeue(job, job.crashes)  # the drain asked for it, or it never began
            case Unfit(code=code, message=message):
                await self._lost(job, JobError(code, message))
            case WorkerCrashed():
                await self._lost(job, JobError.of(outcome))

    async def _lost(self, job: Job, error: JobError) -> None:
        """The worker is gone and left no outcome: once more, unless it was cancelled or kills every worker."""
        if job.is_cancel_requested:
            await self._ledger.end(job, JobStatus.CANCELLED, _cancelled(job))
        elif self._closed:
            await self._requeue(job, job.crashes)
        elif job.crashes + 1 >= MAX_CRASHES:
            await self._ledger.end(job, JobStatus.FAILED, error)
        else:
            log.warning("%s lost its worker in attempt %d (%s); it runs again", job.id, job.attempt, error.code)
            self._metrics.retried.inc()
            await self._requeue(job, job.crashes + 1)

    async def _requeue(self, job: Job, crashes: int) -> None:
        await self._ledger.requeue(job, crashes)
        if self._closed:
            self._ledger.interrupt(job, _kept(job))

    async def _keep(self, work: Coroutine[Any, Any, T]) -> T:
        """Sees ``work`` through even if the caller is cancelled meanwhile."""
        return await asyncio.shield(self._start(work))

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def _let_run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Nobody awaits it: a defect goes to the log."""
        task = self._start(work)
        task.set_name(name)
        task.add_done_callback(_log_defect)

    # --- drain ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Admits and begins nothing from now on; a job whose worker is ended will wait again."""
        self._closed = True

    async def drain(self, grace_period_s: float) -> None:
        """Closes; running jobs finish in time, or stop at their next step and wait again."""
        self.close()
        self._interrupt_waiting()
        await self._wait_until_nothing_runs(grace_period_s)
        for worker in self._workers:
            for job in worker.jobs:
                worker.cancel(job)
        await self._wait_until_nothing_runs(_HAND_BACK_S)

    async def settle(self) -> None:
        """The workers are gone: lets the last changes reach the disk, and answers whoever still waits."""
        await self._wait_until_nothing_runs(_HAND_BACK_S)
        if self._background:
            await asyncio.wait(self._background, timeout=_HAND_BACK_S)
        for task in list(self._background):
            task.cancel()
        for job in self._ledger:
            self._ledger.interrupt(job, _kept(job))

    async def _wait_until_nothing_runs(self, timeout_s: float) -> None:
        end_s = time.monotonic() + timeout_s
        while self._ledger.count(JobStatus.RUNNING) and (left_s := end_s - time.monotonic()) > 0:
            await self._changes.wait(left_s)


def _log_defect(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s failed through a defect", task.get_name(), exc_info=error)


def _work_left(job: Job) -> float:
    return job.params.work * (1 - job.step / job.params.total_steps)


def _cancelled(job: Job) -> JobError:
    return JobError.of(JobCancelled(f"the job was cancelled after step {job.step}"))


def _kept(job: Job) -> ShuttingDown:
    return ShuttingDown(
        f"the server shuts down; the job {job.id} is kept and goes on when the server is started again", retry_after_s=5
    )
