"""The simulation against queueing theory, and each of its rules against the server's own class for it."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import simulate
from benchmarks.capacity import devices_needed, poisson, shared_fairly, simulated
from benchmarks.service_times import RESULTS, Kind, ServiceTimes, batch_tokens, measured
from benchmarks.simulated_fleet import FairLine, Fleet, SimulatedDevice, SimulatedJob
from benchmarks.simulation import FrontTimes, Outcome, Policy, Simulation
from safelight.engine import batch_size
from safelight.engine.batch import Batch
from safelight.engine.drawing_job import DrawingJob
from safelight.engine.stub import StubModel
from safelight.jobs import Job
from safelight.model_card import ModelCard
from safelight.server.queue import JobQueue
from safelight.server.worker_jobs import WorkerJobs
from tests.unit.running_front import asked, params

ONE_STEP = Kind(64, 1)
A_SECOND = ServiceTimes("a second", {64: {1: 1.0}})
"""Of a job, which has the device for itself."""


def random_jobs(rate: float, count: int, *, is_exponential: bool) -> list[SimulatedJob]:
    source = random.Random(7)
    jobs = poisson(rate, count, ONE_STEP, seed=3)
    for job in jobs if is_exponential else ():
        job.slowness = source.expovariate(1.0)
    return jobs


def mean_wait_s(outcome: Outcome) -> float:
    return sum(job.begun_s - job.due_s for job in outcome.jobs) / len(outcome.jobs)


def erlang_c(devices: int, load: float) -> float:
    """Probability of waiting in M/M/c; ``load`` in Erlang."""
    below = sum(load**count / math.factorial(count) for count in range(devices))
    all_busy = load**devices / math.factorial(devices) * devices / (devices - load)
    return all_busy / (below + all_busy)


@pytest.mark.parametrize(("load", "is_exponential"), [(0.5, True), (0.7, False)], ids=["M/M/1", "M/D/1"])
def test_one_device_waits_as_theory_says(load: float, is_exponential: bool) -> None:
    outcome = Simulation(1, A_SECOND).run(random_jobs(load, 50_000, is_exponential=is_exponential))
    pollaczek_khinchine_s = load / (1 - load) / (1 if is_exponential else 2)
    assert mean_wait_s(outcome) == pytest.approx(pollaczek_khinchine_s, rel=0.05)
    assert outcome.device_share == pytest.approx(load, rel=0.03)


def test_several_devices_wait_as_erlang_says() -> None:
    devices, load = 4, 0.7 * 4
    outcome = Simulation(devices, A_SECOND).run(random_jobs(load, 50_000, is_exponential=True))
    assert mean_wait_s(outcome) == pytest.approx(erlang_c(devices, load) / (devices - load), rel=0.06)


def test_the_front_is_a_station_that_all_jobs_pass() -> None:
    front = FrontTimes(submit_cpu_s=0.004, step_cpu_s=0.001, end_cpu_s=0.005, add_s=0.001, claim_s=0.001)
    assert front.jobs_per_s(1) == pytest.approx(100)
    outcome = Simulation(1000, A_SECOND, front).run(poisson(200.0, 4000, ONE_STEP))
    assert outcome.per_s == pytest.approx(100, rel=0.03)
    assert outcome.cpu_share == pytest.approx(1.0, abs=0.03)
    assert outcome.disk_share == pytest.approx(0.2, abs=0.03)


def test_a_slow_disk_hands_out_one_job_after_the_other() -> None:
    outcome = Simulation(100, A_SECOND, FrontTimes(claim_s=0.1)).run(poisson(50.0, 500, ONE_STEP))
    begun_s = sorted(job.begun_s for job in outcome.jobs)
    assert min(later - earlier for earlier, later in itertools.pairwise(begun_s)) > 0.099


# --- the server's rules ---------------------------------------------------------------------------------------------


def test_owners_take_turns_as_in_the_servers_queue() -> None:
    source, real, line = random.Random(1), JobQueue(10_000, math.inf), FairLine()
    names = itertools.count()
    for _ in range(2000):
        if source.random() < 0.55:
            owner, name = source.choice("aabc"), str(next(names))
            real.restore(Job(name, asked(owner=owner)))
            line.put(SimulatedJob(float(name), ONE_STEP, owner))
        elif line:
            head = real.head("")
            assert head is not None and (head.id, head.request.owner) == (str(int(line.head.due_s)), line.head.owner)
            assert real.take("").id == str(int(line.take().due_s))
    assert len(real) == len(line) > 50


CARD = ModelCard(id="card", max_sequence_length=64)
TWO_ROWS_OF_512 = 2 * CARD.tokens(params(width=512, height=512))
SIZES = (256, 512, 1024)
SHARING = ServiceTimes(
    "sharing", {size: {1: 0.1} for size in SIZES}, batch_tokens=TWO_ROWS_OF_512, text_tokens=64, is_synchronous=True
)


def servers_choice(devices: Sequence[WorkerJobs], job: Job) -> int | None:
    """As ``Choice.next`` among equal devices, with the number of jobs in the place of what they have left to do."""
    admitting = [index for index, each in enumerate(devices) if each.admit(job, CARD, TWO_ROWS_OF_512)]
    least = min(admitting, key=lambda index: (len(devices[index].on_device), len(devices[index])), default=None)
    return least


def test_the_least_busy_device_that_admits_a_job_gets_it() -> None:
    source, fleet, real = random.Random(2), Fleet(4, SHARING), [WorkerJobs() for _ in range(4)]
    drawing: list[tuple[int, Job, SimulatedJob]] = []
    encoding: list[tuple[int, Job]] = []
    choices: set[int | None] = set()
    for number in range(4000):
        size = source.choice(SIZES)
        job = Job(str(number), asked(width=size, height=size))
        mine = SimulatedJob(0.0, Kind(size, 4))
        chosen = fleet.choose(mine)
        assert (None if chosen is None else chosen.index) == servers_choice(real, job)
        choices.add(None if chosen is None else len(chosen.on_device))
        if chosen is not None and source.random() < 0.6:
            real[chosen.index].reserve(job)
            chosen.on_device.append(mine)
            fleet.changed(chosen)
            drawing.append((chosen.index, job, mine))
        if drawing and source.random() < 0.5:
            index, job, mine = drawing.pop(source.randrange(len(drawing)))
            real[index].drawn(job)
            fleet.devices[index].on_device.remove(mine)
            fleet.devices[index].drawn += 1
            fleet.changed(fleet.devices[index])
            encoding.append((index, job))
        if encoding and source.random() < 0.4:
            index, job = encoding.pop(source.randrange(len(encoding)))
            real[index].release(job)
            fleet.devices[index].drawn -= 1
            fleet.changed(fleet.devices[index])
    assert choices >= {None, 0, 1, 2}


@pytest.fixture
def _steps_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_STEP_S", "0")


Trace = Sequence[tuple[int, int, int]]
"""Of each job: before which step it joins, its size, and its steps."""


@pytest.mark.usefixtures("_steps_take_no_time")
@pytest.mark.parametrize(
    "trace",
    [
        [(0, 256, 3)],
        [(0, 256, 3), (0, 256, 3), (1, 256, 4), (2, 256, 1)],
        [(0, 512, 3), (0, 512, 2), (0, 512, 2), (1, 512, 1)],
        [(0, 512, 2), (0, 256, 2), (1, 512, 3), (1, 1024, 1), (5, 256, 2)],
    ],
)
def test_pictures_share_steps_as_in_the_engines_batch(trace: Trace) -> None:
    assert simulated_steps(trace) == real_steps(trace)


def real_steps(trace: Trace) -> list[tuple[int, int]]:
    """Size and number of pictures of each step."""
    model = StubModel()
    batch = Batch(model)
    batch.max_tokens = TWO_ROWS_OF_512
    jobs = [
        (at, DrawingJob(params(width=size, height=size, num_inference_steps=steps, seed=index)))
        for index, (at, size, steps) in enumerate(trace)
    ]
    while jobs or not all(job.is_over for job in joined(batch)):
        for entry in [entry for entry in jobs if entry[0] <= len(model.steps)]:
            jobs.remove(entry)
            batch.join(entry[1])
        batch.advance()
    return [(step[0].params.width, len(step)) for step in model.steps]


def joined(batch: Batch) -> list[DrawingJob]:
    return [*batch._arrivals, *(member.job for member in batch._members)]


def simulated_steps(trace: Trace) -> list[tuple[int, int]]:
    seen: list[tuple[int, int]] = []

    class Recorded(SimulatedDevice):
        def _step(self, time_s: float) -> float:
            group, steps = self._group(), self.steps
            ended_s = super()._step(time_s)
            seen.extend([(group[0].kind.size, len(group))] * (self.steps - steps))
            return ended_s

    device = Recorded(0, SHARING)
    jobs = [(at, SimulatedJob(0.0, Kind(size, steps))) for at, size, steps in trace]
    while jobs or device.has_work:
        for entry in [entry for entry in jobs if entry[0] <= len(seen)]:
            jobs.remove(entry)
            device.join(entry[1])
        device.advance(0.0)
    return seen


@pytest.mark.parametrize(
    "row_ms", [[20.0, 18.8, 18.1, 17.9], [14.4, 12.3, 11.5, 10.9], [5.0, 6.0, 4.0, 1.0]], ids=["bf16", "fp8", "never"]
)
def test_what_gains_by_sharing_is_what_a_warm_up_would_find(
    row_ms: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    step_s = {rows: rows * ms / 1000 for rows, ms in zip((1, 2, 4, 8), row_ms, strict=True)}
    clock: Any = SimpleNamespace(now_s=0.0, perf_counter=lambda: clock.now_s)
    monkeypatch.setattr(batch_size, "time", clock)

    class Timed(StubModel):
        def step(self, drawings: Sequence[Any]) -> list[Any]:
            clock.now_s += step_s[len(drawings)]
            return [None] * len(drawings)

    model, small = Timed(), params(width=64, height=64)
    never: Any = SimpleNamespace(is_set=lambda: False)
    found = batch_size.measure_batch_tokens(model, small, 8, never)
    assert batch_tokens(step_s, model.tokens(small)) == found


# --- what it answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_the_measured_parts_add_up_to_the_measured_whole(precision: str) -> None:
    recorded = json.loads((RESULTS / f"serving-h100-{precision}.json").read_text())["overhead"][0]["seconds"]
    times = measured(precision)
    assert times.job_s(Kind(1024, 28)) == pytest.approx(recorded["engine"]["median"], rel=0.1)
    alone = Simulation(1, times).run([SimulatedJob(0.0, Kind(1024, 28))])
    assert alone.percentile_s(50) == pytest.approx(recorded["end_to_end"]["median"], rel=0.1)


def test_rows_that_were_not_measured_lie_on_a_line() -> None:
    times = ServiceTimes("some", {256: {1: 1.0, 4: 1.6, 8: 3.2}})
    assert [times.seconds_of_step(256, rows) for rows in (1, 2, 4, 6, 16)] == pytest.approx([1.0, 1.2, 1.6, 2.4, 6.4])


def test_no_more_devices_than_needed() -> None:
    kind, times, front = Kind(64, 1), A_SECOND, FrontTimes()
    found = devices_needed(5.0, 1.5, kind, times, front, Policy())
    assert found is not None and found["p95_s"] <= 1.5 and found["device_share"] < 1
    assert simulated(found["devices"] - 1, 5.0, kind, times, front, Policy()).percentile_s(95) > 1.5
    assert devices_needed(5.0, 0.9, kind, times, front, Policy(), most=50) is None


def test_batching_carries_a_load_that_single_jobs_do_not() -> None:
    times = ServiceTimes("sharing", {256: {1: 0.1, 4: 0.1}}, batch_tokens=4 * 256, text_tokens=0)
    jobs = [simulated(1, 3.0, Kind(256, 5), times, FrontTimes(), Policy(is_batching=each)) for each in (True, False)]
    assert jobs[0].steady_per_s == pytest.approx(3.0, rel=0.05)
    assert jobs[1].steady_per_s == pytest.approx(2.0, rel=0.05)
    assert 1.2 < jobs[0].rows_per_step <= 4


def test_sequence_parallel_is_for_those_whom_nobody_waits_behind() -> None:
    policy = Policy(ways=2, speed_up=1.6, spare=0.0)
    alone = Simulation(2, A_SECOND, policy=policy).run([SimulatedJob(0.0, ONE_STEP)])
    assert alone.percentile_s(50) == pytest.approx(1 / 1.6)
    assert alone.device_share == pytest.approx(1.0)
    both = Simulation(2, A_SECOND, policy=policy).run([SimulatedJob(0.0, ONE_STEP), SimulatedJob(0.1, ONE_STEP)])
    assert [job.begun_s for job in both.jobs] == pytest.approx([0.0, 1 / 1.6])
    full = Simulation(2, A_SECOND, policy=policy).run([SimulatedJob(0.1 * place, ONE_STEP) for place in range(20)])
    assert sum(bool(job.helpers) for job in full.jobs) == 1


def test_fair_share_keeps_one_caller_from_the_others() -> None:
    fair, first_come = shared_fairly(4, 0.8, ONE_STEP, A_SECOND, FrontTimes())
    assert fair["light_p95_s"] < 0.5 * first_come["light_p95_s"]
    assert fair["heavy_p95_s"] > first_come["heavy_p95_s"]


def figures_of_the_front() -> Iterator[dict[str, float]]:
    for made in (1000, 10_000):
        yield {"jobs_made": made, "steps": 1, "cpu_ms": 5.0}
        yield {"jobs_made": made, "steps": 11, "cpu_ms": 6.0}


def test_the_fronts_times_come_from_what_was_recorded_of_it() -> None:
    recorded = {"fsync_ms": 2.0, "submits": [{"cpu_ms": 3.0}, {"cpu_ms": 2.0}], "history": [*figures_of_the_front()]}
    times = simulate.front_times(recorded)
    assert times.step_cpu_s == pytest.approx(0.0001)
    assert times.submit_cpu_s + times.step_cpu_s + times.end_cpu_s == pytest.approx(0.005)
    assert (times.add_s, times.claim_s, times.finish_s) == pytest.approx((0.002, 0.002, 0.006))


def test_every_question_is_answered(tmp_path: Path) -> None:
    front, output = tmp_path / "front.json", tmp_path / "simulation.json"
    front.write_text(json.dumps({"fsync_ms": 2.0, "submits": [{"cpu_ms": 3.0}], "history": [*figures_of_the_front()]}))
    assert simulate.main(["--quick", "--front", str(front), "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    for question in simulate.QUESTIONS:
        assert found[question], question
    assert found["front"][0]["jobs_per_s"] == pytest.approx(1000 / 10, rel=0.01)
    assert found["service_times"]["fp8"]["card"].startswith("NVIDIA H100")


def test_the_figures_of_the_scaling_page_are_the_recorded_ones() -> None:
    page = (RESULTS.parents[1] / "docs" / "scaling.md").read_text()
    found = json.loads((RESULTS / "simulation.json").read_text())
    for precision, group in itertools.groupby(found["devices"], key=lambda each: each["precision"]):
        for p95_s, cells in itertools.groupby(group, key=lambda each: each["p95_target_s"]):
            counts = " | ".join(str(each["devices"]) for each in cells)
            assert f"| {precision} | {p95_s:g} s | {counts} |" in page
    rows = re.findall(
        r"^\| (\w+(?: \w+)?)[^|]*\| (\d+) \| ([\d.]+) \| ([\d.]+)(?: s)? \| ([\d.]+)(?: s)? \|$", page, re.M
    )
    assert len(rows) == 11
    for what, devices, load, *shown in rows:
        values = recorded(found[what.replace(" ", "_")], int(devices), float(load))
        assert tuple(map(float, shown)) in values, (what, devices, load)


def recorded(figures: list[dict[str, Any]], devices: int, load: float) -> set[tuple[float, ...]]:
    """Pairs of with and without, of any figure and precision, as rounded as the page may show them."""
    some = [each for each in figures if (each["devices"], each["load"]) == (devices, load)]
    pairs = [(with_it, without) for with_it, without in zip(some[::2], some[1::2], strict=True)]
    return {
        (round(with_it[name], digits), round(without[name], digits))
        for with_it, without in pairs
        for name, value in with_it.items()
        if isinstance(value, float)
        for digits in (1, 2)
    }
