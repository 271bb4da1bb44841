"""The jobs for one model in fair order: those who ask take turns, however much each of them asks for."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from operator import attrgetter

from safelight.jobs import Job
from safelight.server.owner_line import Ahead, OwnerLine
from safelight.server.running_sums import RunningSums


class FairLine:
    """A line per owner, served in turn."""

    def __init__(self) -> None:
        self.work = 0.0
        self._lines: dict[str, OwnerLine] = {}
        self._turns: list[OwnerLine] = []
        self._arrivals: OrderedDict[Job, None] = OrderedDict()
        self._rounds = RunningSums()
        """Of each round of turns, how many jobs are taken in it: one of each line that is as long."""
        self._first_turn = self._last_turn = 0

    def __len__(self) -> int:
        return len(self._arrivals)

    def __iter__(self) -> Iterator[Job]:
        """In the order in which they will be taken."""
        lines = [list(line) for line in self._turns]
        for place in range(max(map(len, lines), default=0)):
            yield from (line[place] for line in lines if place < len(line))

    def __contains__(self, job: Job) -> bool:
        return job in self._arrivals

    @property
    def oldest(self) -> Job:
        """The job that has waited longest; there is one."""
        return next(iter(self._arrivals))

    @property
    def head(self) -> Job:
        """The job that ``take`` would remove now; there is one."""
        return self._turns[0].head

    def put(self, job: Job) -> None:
        """To the place that its priority gives it in the line of its owner, who comes last if there was none."""
        line = self._lines.get(job.request.owner)
        if line is None:
            line = self._lines[job.request.owner] = OwnerLine(0)
            self._let_come_last(line)
        self._count_in(job, line)
        line.put(job)

    def put_back(self, job: Job) -> None:
        """To the head of its line, and its line comes next."""
        line = self._lines.get(job.request.owner)
        if line is None:
            line = self._lines[job.request.owner] = OwnerLine(0)
        else:
            del self._turns[self._rank(line)]
        self._first_turn -= 1
        line.turn = self._first_turn
        self._turns.insert(0, line)
        self._count_in(job, line)
        line.put_back(job)

    def take(self) -> Job:
        """Removes the head; the next one will be another owner's, if one waits."""
        line = self._turns.pop(0)
        job = line.head
        self._let_come_last(line)
        self._forget(job, line)
        return job

    def remove(self, job: Job) -> bool:
        """Whether the job waited, and now does not."""
        if job not in self._arrivals:
            return False
        self._forget(job, self._lines[job.request.owner])
        return True

    def ahead(self, job: Job) -> Ahead | None:
        """What will be taken before it if nobody else comes; ``None`` if it does not wait.

        Exact for jobs of its own line, and, but for the last round, for how many of others; those are taken to be of
        average work. The work for all of this does not depend on how many jobs wait.
        """
        if job not in self._arrivals:
            return None
        line = self._lines[job.request.owner]
        own = line.ahead(job)
        before = self._rounds.before(own.jobs)
        in_its_round = self._rounds.before(own.jobs + 1) - before
        others = round(before - own.jobs + min(self._rank(line), in_its_round - 1))
        of_others = len(self) - len(line)
        return Ahead(own.jobs + others, own.work + others * (self.work - line.work) / max(of_others, 1))

    # --- inside -----------------------------------------------------------------------------------------------------

    def _rank(self, line: OwnerLine) -> int:
        return bisect_left(self._turns, line.turn, key=attrgetter("turn"))

    def _let_come_last(self, line: OwnerLine) -> None:
        self._last_turn += 1
        line.turn = self._last_turn
        self._turns.append(line)

    def _count_in(self, job: Job, line: OwnerLine) -> None:
        self._arrivals[job] = None
        self.work += job.params.work
        if len(line) == len(self._rounds):
            self._rounds.append(1)
        else:
            self._rounds.add(len(line), 1)

    def _forget(self, job: Job, line: OwnerLine) -> None:
        del self._arrivals[job]
        self.work -= job.params.work
        line.remove(job)
        self._rounds.add(len(line), -1)
        if not line:
            del self._turns[self._rank(line)]
            del self._lines[job.request.owner]
