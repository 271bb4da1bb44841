"""The jobs that run, and how much work is left of them, kept as they get on rather than counted when asked."""

from __future__ import annotations

from collections import defaultdict

from safelight.jobs import Job


class RunningJobs:
    """From their claim to their end, or until they wait again."""

    def __init__(self) -> None:
        self._left: dict[Job, float] = {}
        self._of_model: defaultdict[str, float] = defaultdict(float)

    def __len__(self) -> int:
        return len(self._left)

    def enter(self, job: Job) -> None:
        """It begins."""
        self._set(job, job.work_left)

    def get_on(self, job: Job) -> None:
        """It made a step; does nothing for a job that does not run."""
        if job in self._left:
            self._set(job, job.work_left)

    def leave(self, job: Job) -> None:
        """It is over, or waits again; does nothing for a job that does not run."""
        if job in self._left:
            self._set(job, 0.0)
            del self._left[job]
            if not self._left:
                self._of_model.clear()  # sums of floats drift

    def work_of(self, model: str) -> float:
        """What is left of all jobs for this model."""
        return self._of_model.get(model, 0.0)

    def _set(self, job: Job, left: float) -> None:
        self._of_model[job.request.model] += left - self._left.get(job, 0.0)
        self._left[job] = left
