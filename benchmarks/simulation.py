"""A server in simulated time: arrivals, the front, the dispatcher's rules, devices. Answers what no machine here can.

Events lie on a heap. The front is two stations that do one thing after the other: its event loop, and the thread that
writes to the disk. What it sets aside: cancelled and failed jobs, deaths of workers, jobs of several pictures, several
models and adapters.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.latency import percentile
from benchmarks.service_times import ServiceTimes
from benchmarks.simulated_fleet import FairLine, Fleet, SimulatedDevice, SimulatedJob


@dataclass(frozen=True, slots=True)
class FrontTimes:
    """Seconds of the front: of its loop for a submit, a step and an end; of its disk for each of a job's three changes.

    Nobody is handed a job while another's claim is being written. ``order_s`` is a message's way to a worker.
    """

    submit_cpu_s: float = 0.0
    step_cpu_s: float = 0.0
    end_cpu_s: float = 0.0
    add_s: float = 0.0
    claim_s: float = 0.0
    finish_s: float = 0.0
    order_s: float = 0.0

    def jobs_per_s(self, steps: int) -> float:
        """How many jobs of so many steps it gets through at most."""
        cpu_s = self.submit_cpu_s + steps * self.step_cpu_s + self.end_cpu_s
        busiest_s = max(cpu_s, self.add_s + self.claim_s + self.finish_s)
        return 1 / busiest_s if busiest_s else float("inf")


@dataclass(frozen=True, slots=True)
class Policy:
    """Which of the dispatcher's means are used. ``ways`` devices make one picture ``speed_up`` times as fast, if there
    would be ``spare`` of all devices idle after that, and nobody waits: an assumption, no server does it yet.
    """

    is_fair: bool = True
    is_batching: bool = True
    ways: int = 1
    speed_up: float = 1.0
    spare: float = 0.25


class _Station:
    """Does one thing after the other."""

    def __init__(self) -> None:
        self.busy_s = 0.0
        self._free_s = 0.0

    def done_s(self, now_s: float, seconds: float) -> float:
        """When what comes now will be done."""
        self._free_s = max(self._free_s, now_s) + seconds
        self.busy_s += seconds
        return self._free_s


@dataclass(slots=True)
class Outcome:
    """What became of all jobs, in the order of their ends; ``seconds`` is from the first arrival to the last end."""

    jobs: list[SimulatedJob]
    seconds: float
    device_share: float
    cpu_share: float
    disk_share: float
    rows_per_step: float

    @property
    def per_s(self) -> float:
        """Jobs that ended in a second, over all of the time."""
        return len(self.jobs) / self.seconds

    @property
    def steady_per_s(self) -> float:
        """The same without the beginning and the end, when devices wait for the first jobs and have the last."""
        first, last = (self.jobs[int(share * (len(self.jobs) - 1))] for share in (0.1, 0.8))
        return 0.7 * len(self.jobs) / (last.ended_s - first.ended_s)

    def latencies_s(self, owner: str | None = None, skip: float = 0.1) -> list[float]:
        """From due to ended, sorted, without the first ``skip`` of the arrivals, who found it empty."""
        by_arrival = sorted(self.jobs, key=lambda job: job.due_s)[int(skip * len(self.jobs)) :]
        return sorted(job.ended_s - job.due_s for job in by_arrival if owner is None or job.owner == owner)

    def percentile_s(self, percent: float, owner: str | None = None) -> float:
        """Of the latencies, the nearest rank."""
        return percentile(self.latencies_s(owner), percent)


class Simulation:
    """``run`` once."""

    def __init__(
        self,
        devices: int,
        times: ServiceTimes,
        front: FrontTimes = FrontTimes(),
        policy: Policy = Policy(),
    ) -> None:
        self._fleet = Fleet(devices, times if policy.is_batching else times.without_batching())
        self._times = times
        self._front = front
        self._policy = policy
        self._line = FairLine(is_fair=policy.is_fair)
        self._loop, self._disk = _Station(), _Station()
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = itertools.count()
        self._now_s = 0.0
        self._is_claiming = False
        self._ended: list[SimulatedJob] = []

    def run(self, arrivals: Sequence[SimulatedJob]) -> Outcome:
        """Until the last of them has ended."""
        for job in arrivals:
            self._at(job.due_s, self._arrive, job)
        while self._events:
            self._now_s, _, happen, about = heapq.heappop(self._events)
            happen(*about)
        seconds = self._now_s - arrivals[0].due_s
        devices = self._fleet.devices
        busy_s, steps = sum(device.busy_s for device in devices), sum(device.steps for device in devices)
        return Outcome(
            self._ended,
            seconds,
            busy_s / (seconds * len(devices)),
            self._loop.busy_s / seconds,
            self._disk.busy_s / seconds,
            sum(device.rows for device in devices) / max(steps, 1),
        )

    def _at(self, time_s: float, happen: Callable[..., None], *about: object) -> None:
        heapq.heappush(self._events, (time_s, next(self._order), happen, about))

    # --- what happens -----------------------------------------------------------------------------------------------

    def _arrive(self, job: SimulatedJob) -> None:
        self._at(
            self._loop.done_s(self._now_s, self._front.submit_cpu_s), self._write, self._front.add_s, self._queue, job
        )

    def _write(self, seconds: float, then: Callable[..., None], *about: object) -> None:
        self._at(self._disk.done_s(self._now_s, seconds), then, *about)

    def _queue(self, job: SimulatedJob) -> None:
        self._line.put(job)
        self._hand_out()

    def _hand_out(self) -> None:
        if self._is_claiming or not self._line:
            return
        job = self._line.head
        device = self._fleet.choose(job)
        if device is None:
            return
        self._line.take()
        device.on_device.append(job)
        self._fleet.changed(device)
        self._share(job, device)
        self._is_claiming = True
        self._write(self._front.claim_s, self._claimed, job, device)

    def _share(self, job: SimulatedJob, device: SimulatedDevice) -> None:
        """Sequence parallel, if it harms nobody."""
        policy, idle = self._policy, self._fleet.idle
        least_idle = policy.ways - 1 + policy.spare * len(self._fleet.devices)
        if policy.ways == 1 or self._line or device.places > 1 or len(idle) < least_idle:
            return
        job.helpers = list(itertools.islice(idle, policy.ways - 1))
        job.slowness /= policy.speed_up
        for each in (device, *job.helpers):
            each.is_lent = True
            self._fleet.changed(each)

    def _claimed(self, job: SimulatedJob, device: SimulatedDevice) -> None:
        self._is_claiming = False
        self._at(self._now_s + self._front.order_s, self._ordered, job, device)
        self._hand_out()

    def _ordered(self, job: SimulatedJob, device: SimulatedDevice) -> None:
        device.join(job)
        if not device.is_drawing:
            self._draw(device)

    def _draw(self, device: SimulatedDevice) -> None:
        device.is_drawing = device.has_work
        if not device.is_drawing:
            return
        done_s, drawn = device.advance(self._now_s)
        for job in drawn:
            self._at(job.drawn_s, self._drawn, job, device)
        self._at(done_s, self._draw, device)

    def _drawn(self, job: SimulatedJob, device: SimulatedDevice) -> None:
        device.on_device.remove(job)
        device.drawn += 1
        for each in (device, *job.helpers):
            each.is_lent = False if job.helpers else each.is_lent
            each.busy_s += job.drawn_s - job.begun_s if each is not device else 0.0
            self._fleet.changed(each)
        encode_s = self._times.of_pixels(self._times.encode_s, job.kind.size)
        device.encoder_free_s = max(device.encoder_free_s, self._now_s) + encode_s
        self._at(device.encoder_free_s, self._encoded, job, device)
        self._hand_out()

    def _encoded(self, job: SimulatedJob, device: SimulatedDevice) -> None:
        device.drawn -= 1
        self._fleet.changed(device)
        cpu_s = self._front.end_cpu_s + job.kind.steps * self._front.step_cpu_s
        self._at(self._loop.done_s(self._now_s, cpu_s), self._write, self._front.finish_s, self._end, job)
        self._hand_out()

    def _end(self, job: SimulatedJob) -> None:
        job.ended_s = self._now_s + self._times.of_pixels(self._times.answer_s, job.kind.size)
        self._ended.append(job)
