"""The jobs that wait: bounded, cancellable, and shared fairly between those who ask."""

from __future__ import annotations

from collections.abc import Iterator

from safelight.errors import QueueFull
from safelight.jobs import Job
from safelight.server.fair_line import FairLine
from safelight.server.owner_line import Ahead


class JobQueue:
    """A fair line for each model. Which model comes next is not decided here.

    Bounded by ``limit`` jobs and by ``work_limit`` (megapixels x steps); jobs that run do not count. Who wants to put a
    job in reserves its place first, since the job must be on disk before it is in line.
    """

    def __init__(self, limit: int, work_limit: float) -> None:
        self.limit = limit
        self.work_limit = work_limit
        self.work = 0.0
        self._lines: dict[str, FairLine] = {}
        self._reserved = 0

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    @property
    def expected(self) -> int:
        """Jobs that wait, or will in a moment: they have a place, and are being written to the disk."""
        return len(self) + self._reserved

    def __iter__(self) -> Iterator[Job]:
        """Model by model, in the order in which they will be taken."""
        for line in self._lines.values():
            yield from line

    @property
    def models(self) -> list[str]:
        """Those that jobs wait for."""
        return list(self._lines)

    def of(self, model: str) -> list[Job]:
        """The jobs for one model, in the order in which they will be taken."""
        return list(self.line(model))

    def line(self, model: str) -> Iterator[Job]:
        """The same one by one, for as long as the queue stays as it is."""
        return iter(self._lines.get(model, ()))

    def waiting_since_s(self, model: str) -> float | None:
        """When the oldest of the jobs for it was accepted (Unix time); ``None`` if none waits."""
        line = self._lines.get(model)
        return None if line is None else line.oldest.created_s

    def count(self, model: str) -> int:
        """How many jobs wait for it."""
        return len(self._lines.get(model, ()))

    def reserve(self, job: Job, retry_after_s: int) -> None:
        """Holds a place. Raises ``QueueFull``, with that ``Retry-After``, at a limit."""
        if len(self) + self._reserved >= self.limit:
            raise QueueFull(f"{self.limit} jobs wait already, which is the limit", retry_after_s=retry_after_s)
        if self.work and self.work + job.params.work > self.work_limit:
            raise QueueFull(
                f"{self.work:.0f} megapixels x steps wait already, this job would pass the limit {self.work_limit:.0f}",
                retry_after_s=retry_after_s,
            )
        self._reserved += 1
        self.work += job.params.work

    def release(self, job: Job) -> None:
        """Gives a reserved place back."""
        self._reserved -= 1
        self.work -= job.params.work

    def put(self, job: Job) -> None:
        """Puts a job into its reserved place."""
        self._reserved -= 1
        self._line(job).put(job)

    def restore(self, job: Job) -> None:
        """Puts a job in that was accepted earlier, whatever the limits say now."""
        self.work += job.params.work
        self._line(job).put(job)

    def put_back(self, job: Job) -> None:
        """Returns a job that was taken and not finished: it comes next."""
        self.work += job.params.work
        self._line(job).put_back(job)

    def _line(self, job: Job) -> FairLine:
        return self._lines.setdefault(job.request.model, FairLine())

    def head(self, model: str) -> Job | None:
        """The job that ``take`` would remove now."""
        line = self._lines.get(model)
        return None if line is None else line.head

    def take(self, model: str) -> Job:
        """Removes the head of a line that is there."""
        job = self._lines[model].take()
        self._forget(job)
        return job

    def remove(self, job: Job) -> bool:
        """Whether the job waited, and now does not."""
        line = self._lines.get(job.request.model)
        if line is None or not line.remove(job):
            return False
        self._forget(job)
        return True

    def _forget(self, job: Job) -> None:
        self.work -= job.params.work
        if not self._lines[job.request.model]:
            del self._lines[job.request.model]
        if not self._lines and not self._reserved:
            self.work = 0.0  # sums of floats drift

    def ahead(self, job: Job) -> Ahead | None:
        """The jobs for its model that will be taken before it, at most; ``None`` if it does not wait."""
        line = self._lines.get(job.request.model)
        return None if line is None else line.ahead(job)

    def work_for(self, model: str) -> float:
        """The work of the jobs that wait for it."""
        line = self._lines.get(model)
        return 0.0 if line is None else line.work
