"""Does the simulation say what really happens? The same arrivals, to a real server with stub workers and on paper.

``python -m benchmarks.check_simulation``. A stub's steps are sleeps, so the machine is not the limit; what a job costs
beside them is measured first, one job at a time, as the simulation of a real card is fed with what was measured there.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.capacity import poisson
from benchmarks.front_load import prediction_request
from benchmarks.front_scenarios import fsync_ms
from benchmarks.latency import percentile
from benchmarks.machine import OtherProcesses
from benchmarks.measured_front import Fleet, MeasuredFront, measured_front
from benchmarks.processes import ROOT, ProcessEnded, ended_by_signals
from benchmarks.quick_client import QuickConnection
from benchmarks.record import Record
from benchmarks.service_times import Kind, ServiceTimes
from benchmarks.simulation import FrontTimes, Simulation

Figures = dict[str, Any]

_OUTPUT = ROOT / "benchmarks" / "results" / "simulation_check.json"
_TARGET = 0.1
_TEXT_TOKENS = 64
_CREATED = 201
_ALONE = 8
_HEAD_START_S = 0.02
_IDLE_S = 2.0
"""The server closes connections that are idle for longer than five."""
_ORDER_S = 0.001
"""From the front's decision to the worker's thread: a message, and two wake-ups."""
_STAGE = "safelight_stage_seconds_sum "


@dataclass(frozen=True, slots=True)
class Asked:
    """So many jobs at random times, at a load that is a share of what the workers do with one job each."""

    workers: int
    load: float
    jobs: int
    step_s: float
    steps: int
    rows: int

    @property
    def kind(self) -> Kind:
        return Kind(64, self.steps)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every error is within the target, 1 if not, or if a process did not do its part."""
    options = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(options)
    record = Record(args.output, shlex.join(["python", "-m", "benchmarks.check_simulation", *options]))
    errors: list[float] = []
    try:
        with ended_by_signals():
            for workers in args.workers:
                for rows in args.rows:
                    for load in args.loads:
                        jobs = args.jobs * workers * rows
                        asked = Asked(workers, load * rows, jobs, args.step_s, args.steps, rows)
                        figures = check(asked)
                        record.append("runs", figures)
                        errors += figures["errors"].values()
                        print(_line(figures), flush=True)
    except (ProcessEnded, OSError) as error:
        print(f"check_simulation: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    record.put(worst_error=max(errors), target=_TARGET)
    print(f"{'PASS' if max(errors) <= _TARGET else 'FAIL'}  worst error {max(errors):.1%}, at most {_TARGET:.0%}")
    return int(max(errors) > _TARGET)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="check_simulation",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--workers", type=_counts, default=[1, 2, 4, 8], help="stub workers")
    add("--rows", type=_counts, default=[1, 4], help="jobs that share a step for the time of one")
    add("--loads", type=_numbers, default=[0.7], help="shares of what the workers can do")
    add("--jobs", type=int, default=30, help="of each run, for each worker and row")
    add("--step-s", type=float, default=0.1, help="seconds of a step")
    add("--steps", type=int, default=6, help="of each job")
    add("--output", type=Path, default=_OUTPUT, help="where the result goes, as JSON")
    return parser


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def check(asked: Asked) -> Figures:
    """One real run, its simulation, and how far that is off."""
    others = OtherProcesses()
    fleet = Fleet(asked.workers, "stub", asked.step_s, asked.rows)
    with tempfile.TemporaryDirectory(prefix="safelight-bench-") as folder, measured_front(fleet, Path(folder)) as front:
        times, front_times = _measure_alone(front, asked)
        rate = asked.load * asked.workers / times.job_s(asked.kind)
        arrivals = poisson(rate, asked.jobs, asked.kind)
        latencies_s, seconds = asyncio.run(_send(front.port, [job.due_s for job in arrivals], asked.steps))
    outcome = Simulation(asked.workers, times, front_times).run(arrivals)
    real = _summary(latencies_s, seconds)
    simulated = _summary([job.ended_s - job.due_s for job in outcome.jobs], outcome.seconds + arrivals[0].due_s)
    return {
        "workers": asked.workers,
        "rows": asked.rows,
        "load": asked.load,
        "jobs": asked.jobs,
        "step_s": asked.step_s,
        "steps": asked.steps,
        "real": real,
        "simulated": simulated,
        "errors": {name: round(abs(simulated[name] / real[name] - 1), 4) for name in real},
        "rows_per_step": round(outcome.rows_per_step, 2),
        "others_share": round(others.share(), 3),
    }


def _measure_alone(front: MeasuredFront, asked: Asked) -> tuple[ServiceTimes, FrontTimes]:
    """What a job takes that has the server for itself, and where."""
    asyncio.run(_send(front.port, [0.0] * 2 * asked.workers, asked.steps))  # first uses, of each worker
    fsync_s = fsync_ms() / 1000
    before, (latencies_s, _) = front.server.totals(), asyncio.run(_send_in_turn(front.port, asked.steps))
    after, latency_s = front.server.totals(), statistics.median(latencies_s)
    stages = {name: (after[_STAGE + name] - before[_STAGE + name]) / _ALONE for name in ("text", "denoise", "decode")}
    device_s = sum(stages.values())
    step_s = stages["denoise"] / asked.steps
    tokens = min(worker["batch_tokens"] for worker in front.server.status()["workers"])
    times = ServiceTimes(
        "stub",
        {asked.kind.size: dict.fromkeys(range(1, asked.rows + 1), step_s)},
        text_s=stages["text"],
        decode_s=stages["decode"],
        encode_s=max(latency_s - device_s - fsync_s - _ORDER_S, 0.0),
        batch_tokens=tokens,
        text_tokens=_TEXT_TOKENS,
        is_synchronous=True,
    )
    return times, FrontTimes(claim_s=fsync_s, order_s=_ORDER_S)


async def _send_in_turn(port: int, steps: int) -> tuple[list[float], float]:
    found = [await _send(port, [0.0], steps) for _ in range(_ALONE)]
    return [latency_s for latencies_s, _ in found for latency_s in latencies_s], sum(seconds for _, seconds in found)


async def _send(port: int, due_s: Sequence[float], steps: int) -> tuple[list[float], float]:
    """Latencies from due to answered, and seconds until the last answer, whether the server keeps up or not."""
    request = prediction_request(steps, waits=True)
    idle: list[tuple[float, QuickConnection]] = []
    start_s = time.monotonic() + _HEAD_START_S

    async def send(due: float) -> float:
        await asyncio.sleep(start_s + due - time.monotonic())
        idle_since_s, connection = idle.pop() if idle else (0.0, None)
        if connection is None or time.monotonic() - idle_since_s > _IDLE_S:
            connection = await QuickConnection.open("127.0.0.1", port)
        status, body = await connection.ask(request)
        if status != _CREATED or b'"status":"succeeded"' not in body:
            raise OSError(f"the server answered {status}: {body[:500]!r}")
        idle.append((time.monotonic(), connection))
        return time.monotonic() - start_s - due

    try:
        latencies_s = await asyncio.gather(*(send(due) for due in due_s))
        return latencies_s, time.monotonic() - start_s
    finally:
        for _, connection in idle:
            connection.close()


def _summary(latencies_s: Sequence[float], seconds: float) -> dict[str, float]:
    return {
        "jobs_per_s": round(len(latencies_s) / seconds, 3),
        "mean_s": round(statistics.mean(latencies_s), 4),
        "p95_s": round(percentile(sorted(latencies_s), 95), 4),
    }


def _line(figures: Figures) -> str:
    parts = [
        f"{name} {figures['real'][name]:.3f}, simulated {figures['simulated'][name]:.3f} ({error:.1%})"
        for name, error in figures["errors"].items()
    ]
    warning = (
        f"; other processes took {figures['others_share']:.0%} of the cores" if figures["others_share"] > 0.05 else ""
    )
    return (
        f"{figures['workers']} workers, {figures['rows']} rows, load {figures['load']:g}: {'; '.join(parts)}{warning}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
