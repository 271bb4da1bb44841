"""Simulated devices, and which of them gets the next job: the rules of the dispatcher, of ``WorkerJobs`` and ``Batch``.

``tests/unit/test_simulation.py`` holds each of them to the server's own classes.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from benchmarks.service_times import Kind, ServiceTimes

_MOST_DRAWN = 8
"""As in server/worker_jobs.py: jobs of a device whose pictures are still encoded."""


@dataclass(slots=True, eq=False)
class SimulatedJob:
    """Times in seconds from the start; ``slowness`` multiplies the time of its steps, ``helpers`` share them."""

    due_s: float
    kind: Kind
    owner: str = ""
    slowness: float = 1.0
    begun_s: float = 0.0
    drawn_s: float = 0.0
    ended_s: float = 0.0
    steps_left: int = 0
    helpers: list[SimulatedDevice] = field(default_factory=list)


class FairLine:
    """As ``JobQueue``: a line per owner, served in turn. If it is not fair, all owners are one."""

    def __init__(self, *, is_fair: bool = True) -> None:
        self._lines: OrderedDict[str, deque[SimulatedJob]] = OrderedDict()
        self._is_fair = is_fair
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def head(self) -> SimulatedJob:
        """The job that ``take`` would remove; there is one."""
        return next(iter(self._lines.values()))[0]

    def put(self, job: SimulatedJob) -> None:
        """To the end of its owner's line."""
        self._lines.setdefault(job.owner if self._is_fair else "", deque()).append(job)
        self._count += 1

    def take(self) -> SimulatedJob:
        """Removes the head; the next one will be another owner's, if one waits."""
        owner, line = next(iter(self._lines.items()))
        job = line.popleft()
        self._lines.move_to_end(owner)
        if not line:
            del self._lines[owner]
        self._count -= 1
        return job


class SimulatedDevice:
    """One worker. Jobs have a place from the claim to the end of encoding, and the device until they are drawn."""

    def __init__(self, index: int, times: ServiceTimes) -> None:
        self.index = index
        self.times = times
        self.on_device: list[SimulatedJob] = []
        self.drawn = 0
        self.is_lent = False
        self.busy_s = 0.0
        self.steps = 0
        self.rows = 0
        self.encoder_free_s = 0.0
        self.is_drawing = False
        self._arrivals: list[SimulatedJob] = []
        self._members: list[SimulatedJob] = []

    @property
    def places(self) -> int:
        """Jobs that it has, drawn or not."""
        return len(self.on_device) + self.drawn

    def admits(self, job: SimulatedJob) -> bool:
        """As ``WorkerJobs.admit``, for jobs of one picture."""
        if self.is_lent:
            return False
        if not self.places:
            return True
        if self.drawn >= _MOST_DRAWN:
            return False
        return not self.on_device or self._has_room_for(job.kind)

    def _has_room_for(self, kind: Kind) -> bool:
        is_shape = all(mate.kind.size == kind.size for mate in self.on_device)
        return is_shape and len(self.on_device) < self.times.rows_limit(kind.size)

    @property
    def line(self) -> int | None:
        """Whose jobs it would take: 0 those of any size, else those of one; ``None`` nobody's."""
        if self.is_lent or (self.places and self.drawn >= _MOST_DRAWN):
            return None
        if not self.on_device:
            return 0
        kind = self.on_device[0].kind
        return kind.size if self._has_room_for(kind) else None

    # --- drawing ----------------------------------------------------------------------------------------------------

    def join(self, job: SimulatedJob) -> None:
        """The order to draw it has arrived."""
        self._arrivals.append(job)

    def advance(self, now_s: float) -> tuple[float, list[SimulatedJob]]:
        """As ``Batch.advance``: when what it does now will be done, and which jobs are drawn; at once if it idles.

        A job that nobody may join is drawn in one go.
        """
        time_s = now_s
        for job in self._arrivals:
            job.begun_s = time_s
            job.steps_left = job.kind.steps
            time_s += self.times.text_s
        self._members += self._arrivals
        self._arrivals.clear()
        drawn = [job for job in self._members if not job.steps_left]
        self._members = [job for job in self._members if job.steps_left]
        for job in drawn:
            time_s += self.times.of_pixels(self.times.decode_s, job.kind.size)
            job.drawn_s = time_s
        time_s = self._step(time_s) if self._members else time_s
        if self.times.is_synchronous:
            for job in drawn:
                job.drawn_s = time_s
        self.busy_s += time_s - now_s
        return time_s, drawn

    def _step(self, time_s: float) -> float:
        group = self._group()
        (first, *mates), size = group, group[0].kind.size
        self.steps += 1
        self.rows += len(group)
        if not mates and (self.times.rows_limit(size) == 1 or first.helpers):
            steps, first.steps_left = first.steps_left, 0
            self.steps += steps - 1
            self.rows += steps - 1
            return time_s + steps * self.times.seconds_of_step(size, 1) * first.slowness
        for job in group:
            job.steps_left -= 1
        return time_s + self.times.seconds_of_step(size, len(group)) * max(job.slowness for job in group)

    def _group(self) -> list[SimulatedJob]:
        size = self._members[0].kind.size
        alike = [job for job in self._members if job.kind.size == size]
        return alike[: self.times.rows_limit(size)]

    @property
    def has_work(self) -> bool:
        """Whether ``advance`` would do anything."""
        return bool(self._arrivals or self._members)


class Fleet:
    """Finds the least busy device that admits a job without looking at all of them."""

    def __init__(self, count: int, times: ServiceTimes) -> None:
        self.devices = [SimulatedDevice(index, times) for index in range(count)]
        self.idle = dict.fromkeys(self.devices)
        self._lines = {0: [(0, 0, index) for index in range(count)]}

    def changed(self, device: SimulatedDevice) -> None:
        """Must be told after each change of what a device has. Old entries are dropped when they come up."""
        if device.places or device.is_lent:
            self.idle.pop(device, None)
        else:
            self.idle[device] = None
        if (line := device.line) is not None:
            heapq.heappush(self._lines.setdefault(line, []), (len(device.on_device), device.places, device.index))

    def choose(self, job: SimulatedJob) -> SimulatedDevice | None:
        """As ``Choice.next`` among equal devices, but by the number of jobs on the device, not by what they have left;
        then the fewest at all, then the first.
        """
        tops = [top for line in (0, job.kind.size) if (top := self._top(line)) is not None]
        return self.devices[min(tops)[2]] if tops else None

    def _top(self, line: int) -> tuple[int, int, int] | None:
        heap = self._lines.get(line, [])
        while heap:
            on_device, places, index = heap[0]
            device = self.devices[index]
            if device.line == line and (len(device.on_device), device.places) == (on_device, places):
                return heap[0]
            heapq.heappop(heap)
        return None
