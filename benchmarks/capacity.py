"""Questions to the simulation: how many devices for a load, what batching, sequence parallel and fair share buy."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.service_times import Kind, ServiceTimes
from benchmarks.simulated_fleet import SimulatedJob
from benchmarks.simulation import FrontTimes, Outcome, Policy, Simulation

Figures = dict[str, Any]

HEAVY, LIGHT = "heavy", "light"
REPLICAS = "replicas only"

_LEAST_JOBS, _MOST_JOBS = 4_000, 40_000
_TURNS = 40
"""How many jobs each device gets at least, if that is not too many."""
_LIGHT_CALLERS = 40


def poisson(rate: float, count: int, kind: Kind, seed: int = 0) -> list[SimulatedJob]:
    """Jobs at random times, ``rate`` in a second on average."""
    source = random.Random(f"{seed} {rate} {kind}")
    time_s, jobs = 0.0, []
    for _ in range(count):
        time_s += source.expovariate(rate)
        jobs.append(SimulatedJob(time_s, kind))
    return jobs


def jobs_for(devices: int) -> int:
    """How many jobs a simulation of so many devices should have."""
    return min(max(_TURNS * devices, _LEAST_JOBS), _MOST_JOBS)


def simulated(
    devices: int, rate: float, kind: Kind, times: ServiceTimes, front: FrontTimes, policy: Policy, seed: int = 0
) -> Outcome:
    """A load of one kind on so many devices."""
    arrivals = poisson(rate, jobs_for(devices), kind, seed)
    return Simulation(devices, times, front, policy).run(arrivals)


def devices_needed(
    rate: float, p95_s: float, kind: Kind, times: ServiceTimes, front: FrontTimes, policy: Policy, most: int = 4_000
) -> Figures | None:
    """The fewest devices with which 95 of 100 jobs end in that time; ``None`` if no number of them is enough."""
    found: dict[int, Outcome] = {}

    def is_enough(count: int) -> bool:
        found[count] = simulated(count, rate, kind, times, front, policy)
        return found[count].percentile_s(95) <= p95_s

    rows = times.rows_limit(kind.size) if policy.is_batching else 1
    drawing_s = kind.steps * (times.seconds_of_step(kind.size, rows) / rows - times.seconds_of_step(kind.size, 1))
    too_few = math.floor(rate * (times.job_s(kind) + drawing_s))  # they would fall behind, if not in so short a time
    enough = math.ceil(too_few * 1.05) + 1
    while not is_enough(enough):
        too_few, enough = enough, math.ceil(enough * 1.3) + 1
        if enough > most:
            return None
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if is_enough(middle) else (middle, enough)
    return {"rate": rate, "p95_target_s": p95_s, "devices": enough} | figures_of(found[enough])


def figures_of(outcome: Outcome) -> Figures:
    """What a simulation came to, rounded."""
    latencies_s = outcome.latencies_s()
    return {
        "jobs_per_s": round(outcome.steady_per_s, 3),
        "mean_s": round(sum(latencies_s) / len(latencies_s), 3),
        "p50_s": round(outcome.percentile_s(50), 3),
        "p95_s": round(outcome.percentile_s(95), 3),
        "device_share": round(outcome.device_share, 3),
        "front_cpu_share": round(outcome.cpu_share, 3),
        "front_disk_share": round(outcome.disk_share, 3),
        "rows_per_step": round(outcome.rows_per_step, 2),
    }


def compared(
    devices: Sequence[int],
    loads: Sequence[float],
    kind: Kind,
    times: ServiceTimes,
    front: FrontTimes,
    policies: Sequence[tuple[str, Policy]],
) -> Iterator[Figures]:
    """The same arrivals under several policies; a load is a share of what the devices do with a job at a time each."""
    for count in devices:
        for load in loads:
            rate = load * count / times.job_s(kind)
            for name, policy in policies:
                found = simulated(count, rate, kind, times, front, policy)
                yield {"devices": count, "load": load, "rate": round(rate, 3), "policy": name} | figures_of(found)


def shared_fairly(devices: int, load: float, kind: Kind, times: ServiceTimes, front: FrontTimes) -> Iterator[Figures]:
    """One caller asks for ten jobs a device at once, again and again; forty others ask now and then. Half of the load
    is the one's.
    """
    rate = load * devices / times.job_s(kind) / 2
    count = jobs_for(devices) // 2
    source = random.Random(f"{devices} {load}")
    light = poisson(rate, count, kind)
    for job in light:
        job.owner = f"{LIGHT}-{source.randrange(_LIGHT_CALLERS)}"
    burst = 10 * devices
    heavy = [
        SimulatedJob(start * burst / rate, kind, HEAVY)
        for start in range(max(math.floor(light[-1].due_s * rate / burst), 1))
        for _ in range(burst)
    ]
    for name, is_fair in (("fair share", True), ("first come, first served", False)):
        jobs = sorted([replace(job) for job in [*heavy, *light]], key=lambda job: job.due_s)
        ended = Simulation(devices, times, front, Policy(is_fair=is_fair)).run(jobs).jobs
        figures: Figures = {"devices": devices, "load": load, "policy": name}
        for who in (LIGHT, HEAVY):
            latencies_s = sorted(job.ended_s - job.due_s for job in ended if job.owner.startswith(who))
            figures[f"{who}_p50_s"] = round(latencies_s[len(latencies_s) // 2], 3)
            figures[f"{who}_p95_s"] = round(latencies_s[int(len(latencies_s) * 0.95)], 3)
        yield figures


def front_limit(devices: Sequence[int], kind: Kind, times: ServiceTimes, front: FrontTimes) -> Iterator[Figures]:
    """What one front adds to so many devices that are nearly full: where it is the limit, they are not."""
    for count in devices:
        rate = 0.9 * count / times.job_s(kind)
        for name, each in (("this front", front), ("a front that takes no time", FrontTimes())):
            found = simulated(count, rate, kind, times, each, Policy())
            yield {"devices": count, "rate": round(rate, 3), "front": name} | figures_of(found)
