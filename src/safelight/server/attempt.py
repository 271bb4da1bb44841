"""One try of a job by a worker process: what comes of it, and what its progress says about the pace."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from safelight.errors import InternalError, WorkerCrashed
from safelight.jobs import Job
from safelight.protocol import Cancelled, Drawn, Failed, Generate, JobOutcome, JobProgress, Preview, StepDone
from safelight.server.ledger import JobLedger
from safelight.server.metrics import Metrics
from safelight.server.model_instance import ModelInstance
from safelight.tracing import NOT_TRACED, TraceContext

log = logging.getLogger(__name__)


class Attempt:
    """Of a job that has a place in a process. ``device_s`` are the seconds of the device that it used.

    Jobs that share the device share its time: each is charged its part only. So seconds per work stay those of the
    worker, however many jobs it has at once. ``pace`` are the seconds per unit of work of its steps, if it had the
    device alone.
    """

    def __init__(
        self,
        job: Job,
        instance: ModelInstance,
        ledger: JobLedger,
        metrics: Metrics,
        trace_context: TraceContext = NOT_TRACED,
        when_drawn: Callable[[], None] = lambda: None,
    ) -> None:
        self.device_s = 0.0
        self._trace_context = trace_context
        self._when_drawn = when_drawn
        self._job = job
        self._instance = instance
        self._ledger = ledger
        self._metrics = metrics
        self._charged_s = 0.0
        self._first_step: tuple[int, float] | None = None
        self._last_step_s = 0.0
        self._was_alone = True

    async def run(self) -> JobOutcome | WorkerCrashed:
        """Its outcome. ``Cancelled`` also if the job never began, for whatever reason: nothing speaks against it."""
        job, instance = self._job, self._instance
        try:
            files = await self._ledger.source_files(job)
            if job.is_cancel_requested or not instance.holds(job):  # since it left the queue
                return Cancelled(job.id, job.attempt)
            self._charged_s = time.monotonic()
            names = job.request.request_id, dict(self._trace_context)
            order = Generate(job.id, job.attempt, job.params, *names, *files)
            return await instance.run(job, order, self._on_progress)
        except WorkerCrashed as error:
            return error
        except Exception:
            log.exception("%s failed through a defect", job.id)
            return Failed(job.id, job.attempt, InternalError.code, "the image could not be made; the log says why")

    def _on_progress(self, progress: JobProgress) -> None:
        match progress:
            case StepDone():
                self._step_done(progress.step)
            case Drawn():
                self._charge()
                self._when_drawn()
                return self._ledger.announce(self._job)
            case Preview():
                self._job.previews.append(progress)
        self._ledger.get_on(self._job)

    def _step_done(self, step: int) -> None:
        self._job.step = step
        if step % self._job.params.num_images == 0:  # its images make their steps together
            self._metrics.step.observe(self._charge())
            self._metrics.batch_jobs.observe(self._sharing)
            self._last_step_s = self._charged_s
            self._first_step = self._first_step or (step, self._last_step_s)

    def _charge(self) -> float:
        """Seconds since the last time."""
        now_s = time.monotonic()
        seconds, self._charged_s = now_s - self._charged_s, now_s
        sharing = self._sharing
        self.device_s += seconds / sharing
        self._was_alone &= sharing == 1
        return seconds

    @property
    def pace(self) -> float | None:
        """Once it is drawn; from its second step on, since what comes before depends on more than the device."""
        if self._first_step is None or not self._was_alone:
            return None
        first_step, first_s = self._first_step
        work = self._job.params.work * (self._job.step - first_step) / self._job.params.total_steps
        return (self._last_step_s - first_s) / work if work else None

    @property
    def _sharing(self) -> int:
        return max(len(self._instance.jobs_on_device), 1)
