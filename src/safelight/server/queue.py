"""The jobs that wait: bounded, cancellable, and shared fairly between those who ask."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from safelight.errors import QueueFull
from safelight.jobs import Job


class JobQueue:
    """One line per owner, served in turn; within a line by priority, then first come, first served.

    Bounded by ``limit`` jobs and by ``work_limit`` (megapixels x steps); jobs that run do not count. Who wants to put a
    job in reserves its place first, since the job must be on disk before it is in line.
    """

    def __init__(self, limit: int, work_limit: float) -> None:
        self.limit = limit
        self.work_limit = work_limit
        self.work = 0.0
        self._lines: OrderedDict[str, list[Job]] = OrderedDict()
        self._reserved = 0

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def __iter__(self) -> Iterator[Job]:
        """In the order in which they will be taken."""
        lines = [list(line) for line in self._lines.values()]
        for place in range(max(map(len, lines), default=0)):
            yield from (line[place] for line in lines if place < len(line))

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
        self._insert(job)

    def restore(self, job: Job) -> None:
        """Puts a job in that was accepted earlier, whatever the limits say now."""
        self.work += job.params.work
        self._insert(job)

    def put_back(self, job: Job) -> None:
        """Returns a job that was taken and not finished: to the head of its line, and its line comes next."""
        self.work += job.params.work
        owner = job.request.owner
        self._lines.setdefault(owner, []).insert(0, job)
        self._lines.move_to_end(owner, last=False)

    def _insert(self, job: Job) -> None:
        line = self._lines.setdefault(job.request.owner, [])
        place = len(line)
        while place and line[place - 1].request.priority < job.request.priority:
            place -= 1
        line.insert(place, job)

    @property
    def head(self) -> Job | None:
        """The job that ``take`` would remove now."""
        return next((line[0] for line in self._lines.values()), None)

    def take(self) -> Job:
        """Removes the head of a queue that is not empty; the next one will be another owner's, if one waits."""
        owner, line = next(iter(self._lines.items()))
        job = line.pop(0)
        self._lines.move_to_end(owner)
        self._forget(owner, job)
        return job

    def remove(self, job: Job) -> bool:
        """Whether the job waited, and now does not."""
        line = self._lines.get(job.request.owner, [])
        if job not in line:
            return False
        line.remove(job)
        self._forget(job.request.owner, job)
        return True

    def _forget(self, owner: str, job: Job) -> None:
        self.work -= job.params.work
        if not self._lines[owner]:
            del self._lines[owner]
        if not self._lines and not self._reserved:
            self.work = 0.0  # sums of floats drift

    def position(self, job: Job) -> int | None:
        """How many jobs will be taken before it; ``None`` if it does not wait."""
        return next((place for place, waiting in enumerate(self) if waiting is job), None)
