"""The jobs of one caller for one model: by priority, then first come, first served."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter

from safelight.jobs import Job
from safelight.server.running_sums import RunningSums

_SLACK = 64


@dataclass(frozen=True, slots=True)
class Ahead:
    """What will be taken before a job."""

    jobs: int
    work: float


class Lane:
    """First come, first served. Those who leave from the middle leave gaps, which are closed when they are many."""

    def __init__(self) -> None:
        self.work = 0.0
        self._numbers: OrderedDict[Job, int] = OrderedDict()
        self._counts = RunningSums()
        self._works = RunningSums()

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._numbers)

    def put(self, job: Job) -> None:
        """Behind all others."""
        if len(self._counts) > 2 * len(self) + _SLACK:
            self._close_gaps()
        self.work += job.params.work
        self._works.append(job.params.work)
        self._numbers[job] = self._counts.append(1)

    def _close_gaps(self) -> None:
        waiting, self.work = list(self), 0.0
        self._numbers, self._counts, self._works = OrderedDict(), RunningSums(), RunningSums()
        for job in waiting:
            self.put(job)

    def remove(self, job: Job) -> None:
        """One that is in it."""
        number = self._numbers.pop(job)
        self.work -= job.params.work
        self._counts.add(number, -1)
        self._works.add(number, -job.params.work)

    def ahead(self, job: Job) -> Ahead:
        """Of one that is in it."""
        number = self._numbers[job]
        return Ahead(round(self._counts.before(number)), self._works.before(number))


class OwnerLine:
    """One caller's jobs: those that came back, oldest first; then by priority. ``turn`` orders the callers."""

    def __init__(self, turn: int) -> None:
        self.turn = turn
        self.work = 0.0
        self._returned: list[Job] = []
        self._lanes: dict[int, Lane] = {}

    def __len__(self) -> int:
        return len(self._returned) + sum(map(len, self._lanes.values()))

    def __iter__(self) -> Iterator[Job]:
        return chain(self._returned, *(self._lanes[priority] for priority in sorted(self._lanes, reverse=True)))

    @property
    def head(self) -> Job:
        """The first; there is one."""
        return next(iter(self))

    def put(self, job: Job) -> None:
        """To where its priority has it."""
        self.work += job.params.work
        self._lanes.setdefault(job.request.priority, Lane()).put(job)

    def put_back(self, job: Job) -> None:
        """Before all that never left."""
        self.work += job.params.work
        self._returned.insert(bisect_left(self._returned, job.created_s, key=attrgetter("created_s")), job)

    def remove(self, job: Job) -> None:
        """One that is in it."""
        self.work -= job.params.work
        if job in self._returned:
            return self._returned.remove(job)
        lane = self._lanes[job.request.priority]
        lane.remove(job)
        if not lane:
            del self._lanes[job.request.priority]

    def ahead(self, job: Job) -> Ahead:
        """Of one that is in it."""
        if job in self._returned:
            before = self._returned[: self._returned.index(job)]
            return Ahead(len(before), sum(other.params.work for other in before))
        priority = job.request.priority
        in_lane = self._lanes[priority].ahead(job)
        higher = [lane for other, lane in self._lanes.items() if other > priority]
        count = in_lane.jobs + len(self._returned) + sum(map(len, higher))
        returned_work = sum(other.params.work for other in self._returned)
        return Ahead(count, in_lane.work + returned_work + sum(lane.work for lane in higher))
