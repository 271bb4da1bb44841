"""Admits jobs, hands them to workers, sees them through whoever dies on the way, and drains."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from safelight.errors import JobCancelled, SafelightError, ShuttingDown, WorkerCrashed
from safelight.jobs import Job, JobError, JobRequest, JobStatus
from safelight.logs import about
from safelight.protocol import Cancelled, Disbanded, Failed, JobOutcome, Succeeded, Unfit
from safelight.server.attempt import Attempt
from safelight.server.catalogue import Catalogue
from safelight.server.changes import Changes
from safelight.server.choice import Choice
from safelight.server.database import IdempotencyKey
from safelight.server.device_paces import DevicePaces
from safelight.server.forecast import Forecast
from safelight.server.job_spans import JobSpans
from safelight.server.ledger import JobLedger
from safelight.server.metrics import Metrics
from safelight.server.model_instance import ModelInstance
from safelight.server.pace import Paces
from safelight.server.placement import Placement
from safelight.server.room import check_room
from safelight.server.serving import Serving
from safelight.server.team import Team
from safelight.server.team_choice import TeamChoice
from safelight.server.worker import Worker
from safelight.server.worker_jobs import MachineLost
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
        models: Catalogue,
        workers: Sequence[Worker],
        changes: Changes,
        metrics: Metrics,
        model_wait_s: float,
        teams: TeamChoice,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self.paces = Paces()
        self._device_paces = DevicePaces()
        self._choice = Choice(self._device_paces)
        self.placement = Placement(models, workers, ledger.queue, changes, self.paces, model_wait_s)
        self._serving = Serving(workers, changes)
        self.forecast = Forecast(models, workers, ledger, self._serving, self.placement, self.paces)
        self._ledger = ledger
        self._models = models
        self._queue = ledger.queue
        self._workers = workers
        self._device_changes = changes
        self._changes = changes.wider
        self._metrics = metrics
        self._teams = teams
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

        Raises ``QueueFull``, ``ShuttingDown``, a storage error, or, if no device can ever take it, ``LoadError`` or
        ``InvalidSize``.
        """
        job = Job(f"job_{uuid.uuid4().hex}", self._models.resolved(request), created_s=time.time())
        try:
            if self._closed:
                raise ShuttingDown("the server is shutting down and takes no new work", retry_after_s=5)
            if reason := self._why_it_waits(job):
                raise reason
            self._check_room(job)
            self._queue.reserve(job, self.forecast.retry_after_s(job.request.model))
            return await self._keep(self._ledger.accept(job, idempotency, files or {}))
        except SafelightError as error:
            self._metrics.refused.labels(error.code).inc()
            raise

    def _check_room(self, job: Job) -> None:
        model = self._models.named(job.request.model)
        holders = len(self.placement.holders(model)) if model else 0
        check_room(job.params, self._serving.of(job.request.model), holders)

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
        if self._closed:
            return _kept(job)
        model = self._models.named(job.request.model)
        return self.placement.failure(model) if model else None

    async def cancel(self, job: Job, reason: str = "api") -> None:
        """A waiting job ends at once, a running one at its next denoising step, a finished one not at all."""
        if self._queue.remove(job):
            self._metrics.cancelled.labels(reason).inc()
            error = JobCancelled("the job was cancelled while it waited")
            await self._keep(self._ledger.end(job, JobStatus.CANCELLED, JobError.of(error)))
        elif job in self._ledger and not job.is_cancel_requested:
            job.is_cancel_requested = True
            self._metrics.cancelled.labels(reason).inc()
            for instance in self._serving.holders(job):
                instance.cancel(job)

    def abandon(self, job: Job) -> None:
        """As ``cancel``, for a client that does not wait for it."""
        if not self._closed:
            self._let_run(self.cancel(job, "disconnect"), f"cancel {job.id}")

    # --- tasks ------------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Gives the next job of each model to a device that has the model, as soon as one admits it, for ever."""
        while True:
            while (found := self._next()) is not None:
                job, instance = found
                team = self._teams.team_for(job, instance)
                self._take(job)
                self._begin(job, team)
            await self._changes.wait()

    def _next(self) -> tuple[Job, ModelInstance] | None:
        """A job that can begin, and where."""
        if self._closed or self._ledger.is_stuck:  # results that wait for the disk wait in memory
            return None
        for model in self._queue.models:
            if (found := self._choice.next(self._queue.line(model), self._serving)) is not None:
                return found
        return None

    def _take(self, job: Job) -> None:
        """Out of the line, from which its owner has had a turn if it was the head."""
        if self._queue.head(job.request.model) is job:
            self._queue.take(job.request.model)
        else:
            self._queue.remove(job)

    def _begin(self, job: Job, team: Team) -> None:
        """The places are taken at once; the claims of several jobs go to the disk together."""
        self._serving.reserve(job, team)
        with about(**job.ids, worker_id=team.leader.worker_id):
            self._let_run(self._claim_and_run(job, team), f"run {job.id}")

    async def _claim_and_run(self, job: Job, team: Team) -> None:
        is_claimed = False
        try:
            is_claimed = await self._ledger.claim(job)
        finally:
            if not is_claimed:
                self._serving.release(job)
        if is_claimed:
            await self._run(job, team)

    async def watch(self) -> None:
        """Tells those who wait once no device will have their model by itself. Their jobs are kept."""
        while True:
            await self._device_changes.wait()
            for model in self._models:
                if self._queue.count(model.name) and (failure := self.placement.failure(model)):
                    for job in self._queue.of(model.name):
                        self._ledger.interrupt(job, failure)

    def _interrupt_waiting(self) -> None:
        for job in self._ledger:
            if job.status is JobStatus.QUEUED:
                self._ledger.interrupt(job, _kept(job))

    async def _run(self, job: Job, team: Team) -> None:
        if await self._teams.is_waited_behind(job, team):
            self._serving.release(job)
            team = Team([team.leader])
            self._serving.reserve(job, team)
        job.workers = team.worker_ids
        span = self._spans.begin(job, team)
        touch = functools.partial(self._serving.touch, team.leader)
        attempt = Attempt(job, team, self._ledger, self._metrics, span.context, touch)
        try:
            outcome = await attempt.run()
        finally:
            self._serving.release(job)
        self._teams.learn(job, team, attempt.step_s)
        if isinstance(outcome, WorkerCrashed | Unfit):
            job.lost_on.add(team.leader.worker_id)
        with self._spans.ending(job, span, outcome):
            await self._settle(job, outcome)
        if isinstance(outcome, Succeeded):
            self.paces.of(job.request.model).measured(job.params.work, attempt.device_s)
            self._metrics.teams.labels(len(team)).inc()
            if len(team) == 1 and attempt.pace is not None:
                self._device_paces.measured(job.request.model, team.leader.device.name, job.params.shape, attempt.pace)

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
            case MachineLost():
                await self._lost(job, JobError.of(outcome), crashes=0)
            case Disbanded(message=message):
                await self._lost(job, JobError(WorkerCrashed.code, message))
            case WorkerCrashed():
                await self._lost(job, JobError.of(outcome))

    async def _lost(self, job: Job, error: JobError, crashes: int = 1) -> None:
        """The worker is gone and left no outcome: once more, unless it was cancelled or kills every worker."""
        if job.is_cancel_requested:
            await self._ledger.end(job, JobStatus.CANCELLED, _cancelled(job))
        elif self._closed:
            await self._requeue(job, job.crashes)
        elif job.crashes + crashes >= MAX_CRASHES:
            await self._ledger.end(job, JobStatus.FAILED, error)
        else:
            log.warning("%s lost its worker in attempt %d (%s); it runs again", job.id, job.attempt, error.code)
            self._metrics.retried.inc()
            await self._requeue(job, job.crashes + crashes)

    async def _requeue(self, job: Job, crashes: int) -> None:
        await self._ledger.requeue(job, crashes)
        if (reason := self._why_it_waits(job)) is not None:
            self._ledger.interrupt(job, reason)

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


def _cancelled(job: Job) -> JobError:
    return JobError.of(JobCancelled(f"the job was cancelled after step {job.step}"))


def _kept(job: Job) -> ShuttingDown:
    return ShuttingDown(
        f"the server shuts down; the job {job.id} is kept and goes on when the server is started again", retry_after_s=5
    )
