"""The jobs that one worker has, and who may join them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from safelight.errors import WorkerCrashed
from safelight.jobs import Job
from safelight.model_card import ModelCard
from safelight.protocol import JobOutcome, JobProgress

OnProgress = Callable[[JobProgress], None]

_MOST_DRAWN = 8
"""Jobs whose pictures are still encoded; if drawing is faster than that, they would fill the memory."""


class MachineLost(WorkerCrashed):
    """The machine went, and the worker with it: that says nothing against the job."""


def loss(exit_code: int | None) -> WorkerCrashed:
    """What the jobs get that a process had; without a code, nobody saw its end."""
    if exit_code is None:
        return MachineLost("the machine that made the image was lost; ask again")
    return WorkerCrashed(f"the worker died while it made the image (exit code {exit_code}); ask again")


@dataclass(slots=True, eq=False)
class RunningJob:
    """A job that the process knows of."""

    job: Job
    on_progress: OnProgress
    outcome: asyncio.Future[JobOutcome]


class WorkerJobs:
    """Oldest first. A place is reserved before the job begins, and kept until its outcome.

    Jobs that are not drawn yet share the device, step by step: all of one shape with the same adapters, no more rows
    than it carries.
    """

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._drawn: set[Job] = set()
        self._alone: set[Job] = set()
        self._running: dict[str, RunningJob] = {}

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs))

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def on_device(self) -> list[Job]:
        """Those that are not drawn yet."""
        return [job for job in self._jobs if job not in self._drawn]

    def admit(self, job: Job, card: ModelCard, batch_tokens: int) -> bool:
        """Whether the job may begin beside these.

        One that lost a worker before runs alone to its end: it may be the reason, or was lost for another's sake.
        """
        if not self._jobs:
            return True
        if any(each.crashes for each in [*self._jobs, job]) or len(self._drawn) >= _MOST_DRAWN:
            return False
        mates = self.on_device
        if self._alone.intersection(mates):
            return False
        return not mates or _may_share([*mates, job], card, batch_tokens)

    def is_open(self, card: ModelCard, batch_tokens: int) -> bool:
        """Whether there is a job that ``admit`` lets in."""
        if not self._jobs:
            return True
        if any(each.crashes for each in self._jobs) or len(self._drawn) >= _MOST_DRAWN:
            return False
        mates = self.on_device
        if self._alone.intersection(mates):
            return False
        return not mates or _fits(sum(job.params.rows for job in mates) + 1, mates[0], card, batch_tokens)

    def reserve(self, job: Job, *, is_alone: bool = False) -> None:
        """Takes a place for the job; nobody joins one that is to be alone until it is drawn."""
        self._jobs.append(job)
        if is_alone:
            self._alone.add(job)

    def begin(self, job: Job, on_progress: OnProgress) -> RunningJob:
        """From now on messages find it."""
        running = RunningJob(job, on_progress, asyncio.get_running_loop().create_future())
        self._running[job.id] = running
        return running

    def find(self, job_id: str, attempt: int) -> RunningJob | None:
        """The job that a message of the process is about, unless it is over."""
        running = self._running.get(job_id)
        is_it = running is not None and running.job.attempt == attempt and not running.outcome.done()
        return running if is_it else None

    def drawn(self, job: Job) -> None:
        """The device is done with it."""
        self._drawn.add(job)

    def release(self, job: Job) -> None:
        """Gives its place back; does nothing if it has none."""
        if job in self._jobs:
            self._jobs.remove(job)
            self._drawn.discard(job)
            self._alone.discard(job)
            self._running.pop(job.id, None)

    def lose(self, error: WorkerCrashed) -> None:
        """The process is gone: so are all places, and those who wait for an outcome get the error."""
        for running in reversed(self._running.values()):  # each goes to the head of its line: the oldest last
            if not running.outcome.done():
                running.outcome.set_exception(error)
        self._jobs.clear()
        self._drawn.clear()
        self._alone.clear()
        self._running.clear()


def _may_share(jobs: list[Job], card: ModelCard, batch_tokens: int) -> bool:
    params = jobs[-1].params
    is_alike = all(job.params.shape == params.shape and job.params.loras == params.loras for job in jobs)
    return is_alike and _fits(sum(job.params.rows for job in jobs), jobs[-1], card, batch_tokens)


def _fits(rows: int, job: Job, card: ModelCard, batch_tokens: int) -> bool:
    """So many rows of the job's shape."""
    return rows * card.tokens(job.params) <= batch_tokens
