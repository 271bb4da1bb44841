"""The jobs that wait: bounded, cancellable, and shared fairly between those who ask."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from safelight.errors import QueueFull
from safelight.jobs import Job


class FairLine:
    """The jobs for one model: a line per owner, served in turn; in it by priority, then first come, first served."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, list[Job]] = OrderedDict()
        self._arrivals: dict[Job, None] = {}

    def __len__(self) -> int:
        return len(self._arrivals)

    def __iter__(self) -> Iterator[Job]:
        """In the order in which they will be taken."""
        lines = [list(line) for line in self._lines.values()]
        for place in range(max(map(len, lines), default=0)):
            yield from (line[place] for line in lines if place < len(line))

    @property
    def oldest(self) -> Job:
        """The job that has waited longest; there is one."""
        return next(iter(self._arrivals))

    def put(self, job: Job) -> None:
        """To where its priority has it."""
        self._arrivals[job] = None
        line = self._lines.setdefault(job.request.owner, [])
        place = len(line)
        while place and line[place - 1].request.priority < job.request.priority:
            place -= 1
        line.insert(place, job)

    def put_back(self, job: Job) -> None:
        """To the head of its line, and its line comes next."""
        self._arrivals[job] = None
        owner = job.request.owner
        self._lines.setdefault(owner, []).insert(0, job)
        self._lines.move_to_end(owner, last=False)

    @property
    def head(self) -> Job:
        """The job that ``take`` would remove now; there is one."""
        return next(iter(self._lines.values()))[0]

    def take(self) -> Job:
        """Removes the head; the next one will be another owner's, if one waits."""
        owner, line = next(iter(self._lines.items()))
        job = line.pop(0)
        self._lines.move_to_end(owner)
        self._forget(job)
        return job

    def remove(self, job: Job) -> bool:
        """Whether the job waited, and now does not."""
        if job not in self._arrivals:
            return False
        self._lines[job.request.owner].remove(job)
        self._forget(job)
        return True

    def _forget(self, job: Job) -> None:
        del self._arrivals[job]
        if not self._lines[job.request.owner]:
            del self._lines[job.request.owner]


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
        return list(self._lines.get(model, ()))

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

    def position(self, job: Job) -> int | None:
        """How many jobs for its model will be taken before it; ``None`` if it does not wait."""
        line = self._lines.get(job.request.model, ())
        return next((place for place, waiting in enumerate(line) if waiting is job), None)
