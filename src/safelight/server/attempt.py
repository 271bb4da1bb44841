"""One try of a job by a worker process or a team: what comes of it, and what its progress says about the pace."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable

from safelight.errors import InternalError, WorkerCrashed
from safelight.jobs import Job
from safelight.protocol import Cancelled, Drawn, Failed, Generate, JobOutcome, JobProgress, Preview, StepDone
from safelight.server.ledger import JobLedger
from safelight.server.metrics import Metrics
from safelight.server.team import Team
from safelight.tracing import NOT_TRACED, TraceContext

log = logging.getLogger(__name__)

_LEAST_STEPS = 3


class Attempt:
    """Of a job that has its places. ``device_s`` are the seconds of devices that it used.

    Jobs that share the device share its time: each is charged its part only. Where several devices make a job, their
    times add up. So seconds per work stay those of a worker, however many jobs it has at once.
    """

    def __init__(
        self,
        job: Job,
        team: Team,
        ledger: JobLedger,
        metrics: Metrics,
        trace_context: TraceContext = NOT_TRACED,
        when_drawn: Callable[[], None] = lambda: None,
    ) -> None:
        self.device_s = 0.0
        self._trace_context = trace_context
        self._when_drawn = when_drawn
        self._job = job
        self._team = team
        self._ledger = ledger
        self._metrics = metrics
        self._charged_s = 0.0
        self._steps_s: list[float] = []
        self._was_shared = False

    async def run(self) -> JobOutcome | WorkerCrashed:
        """Its outcome. ``Cancelled`` also if the job never began, for whatever reason: nothing speaks against it."""
        job, team = self._job, self._team
        try:
            image, mask, *_ = [*await self._ledger.source_files(job), None, None]
            if job.is_cancel_requested or not team.holds(job):  # since it left the queue
                return Cancelled(job.id, job.attempt)
            self._charged_s = time.monotonic()
            names = job.request.request_id, dict(self._trace_context)
            order = Generate(job.id, job.attempt, job.params, *names, image, mask)
            return await team.run(job, order, self._on_progress)
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
            seconds = self._charge()
            self._steps_s.append(seconds)
            self._metrics.step.observe(seconds)
            self._metrics.batch_jobs.observe(self._sharing)

    def _charge(self) -> float:
        """Seconds since the last time."""
        now_s = time.monotonic()
        seconds, self._charged_s = now_s - self._charged_s, now_s
        sharing = self._sharing
        self.device_s += seconds * len(self._team) / sharing
        self._was_shared |= sharing > 1
        return seconds

    @property
    def step_s(self) -> float | None:
        """What a step took, the first one left out, if the job had the device for itself and made enough of them."""
        return None if self._job.params.num_images > 1 else self._usual_step_s(_LEAST_STEPS)

    @property
    def pace(self) -> float | None:
        """Seconds per unit of work of its steps, if it had the device for itself: the first one depends on more."""
        step_s, params = self._usual_step_s(2), self._job.params
        return None if step_s is None else step_s * params.total_steps / (params.work * params.num_images)

    def _usual_step_s(self, least: int) -> float | None:
        return None if self._was_shared or len(self._steps_s) < least else statistics.median(self._steps_s[1:])

    @property
    def _sharing(self) -> int:
        return max(len(self._team.leader.jobs_on_device), 1)
