"""Capacity on paper: a simulated server with as many devices as asked, fed with what benchmarks/results measured.

``python -m benchmarks.simulate``; README.md of this folder says how to read what it prints, docs/scaling.md what it
found. Nothing of it is measured: it says what would follow from what was.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import capacity
from benchmarks.capacity import Figures
from benchmarks.record import Record
from benchmarks.service_times import RESULTS, Kind, ServiceTimes, measured
from benchmarks.simulation import FrontTimes, Policy

QUESTIONS = ("devices", "batching", "sequence_parallel", "fair_share", "front")

_OUTPUT = RESULTS / "simulation.json"
_FRONT = RESULTS / "front.json"
_PRECISIONS = ("bf16", "fp8")
_QUICK: dict[str, Any] = {"devices": [8], "rates": [1.0], "loads": [0.8], "precisions": ["fp8"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 if a result that it needs is not there."""
    options = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(options)
    if args.quick:
        vars(args).update(_QUICK)
    try:
        times = {precision: measured(precision) for precision in args.precisions}
        front = front_times(json.loads(args.front.read_text())) if args.front.exists() else None
    except (OSError, KeyError, ValueError) as error:
        print(f"simulate: the recorded results do not serve: {error!r}", file=sys.stderr)
        return 1
    record = Record(args.output, shlex.join(["python", "-m", "benchmarks.simulate", *options]))
    record.put(
        service_times={precision: _shown(each) for precision, each in times.items()},
        front_times=None if front is None else {name: getattr(front, name) for name in FrontTimes.__slots__},
        assumptions=_assumptions(args),
    )
    for question in args.questions:
        if question == "front" and front is None:
            print(f"front: {args.front.name} is not there: run python -m benchmarks.bench_front first", flush=True)
            continue
        for figures in _ANSWERS[question](args, times, front or FrontTimes()):
            record.append(question, figures)
            print(f"{question}: {', '.join(f'{name} {value}' for name, value in figures.items())}", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="simulate",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--questions", type=_names(QUESTIONS), default=list(QUESTIONS), help="which, such as devices,front")
    add("--precisions", type=_names(_PRECISIONS), default=list(_PRECISIONS), help="of the measured times")
    add("--quick", action="store_true", help="a few of each, to see that it works")
    add("--size", type=int, default=1024, help="pixels of a side, as measured: 256, 512, 768 or 1024")
    add("--batching-size", type=int, default=256, help="the same, for the question batching")
    add("--steps", type=int, default=28, help="denoising steps")
    add("--rates", type=_numbers, default=[1.0, 10.0, 100.0, 250.0], help="devices: requests in a second")
    add("--slack", type=_numbers, default=[1.25, 2.0], help="devices: p95 allowed, in times of a job alone")
    add("--devices", type=_counts, default=[8, 100, 1000], help="the other questions: how many")
    add(
        "--loads",
        type=_numbers,
        default=[0.1, 0.3, 0.5, 0.7, 0.9, 1.1],
        help="shares of what devices do with one job each",
    )
    add("--ways", type=int, default=2, help="sequence_parallel: devices for one picture")
    add("--speed-up", type=float, default=1 / 0.65, help="sequence_parallel: ASSUMED, the goal of the project")
    add("--front", type=Path, default=_FRONT, help="what bench_front recorded; without it the front takes no time")
    add("--output", type=Path, default=_OUTPUT, help="where the result goes, as JSON")
    return parser


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(known)}")
        return names

    return parse


def front_times(result: Mapping[str, Any]) -> FrontTimes:
    """From what ``bench_front`` recorded: CPU of a submit, and of a job by its steps; three changes of the disk."""
    submit_cpu_s = min(figures["cpu_ms"] for figures in result["submits"]) / 1000
    last = max(figures["jobs_made"] for figures in result["history"])
    by_steps = {each["steps"]: each["cpu_ms"] / 1000 for each in result["history"] if each["jobs_made"] == last}
    few, many = min(by_steps), max(by_steps)
    step_cpu_s = max((by_steps[many] - by_steps[few]) / (many - few), 0.0) if many > few else 0.0
    fsync_s = result["fsync_ms"] / 1000
    return FrontTimes(
        submit_cpu_s,
        step_cpu_s,
        end_cpu_s=max(by_steps[few] - few * step_cpu_s - submit_cpu_s, 0.0),
        add_s=fsync_s,
        claim_s=fsync_s,
        finish_s=3 * fsync_s,  # the picture, its name, the job
    )


def _shown(times: ServiceTimes) -> Figures:
    return {
        "name": times.name,
        **times.sources,
        "job_s_1024": round(times.job_s(Kind()), 3),
        "batch_tokens": times.batch_tokens,
        "rows_limit": {str(size): times.rows_limit(size) for size in sorted(times.step_s)},
    }


def _assumptions(args: argparse.Namespace) -> list[str]:
    return [
        f"sequence parallel: {args.ways} devices make a picture {args.speed_up:.2f} times as fast (not measured)",
        "text takes as long at every size; decoding, encoding and the answer as long for a pixel as at 1024",
        "no job fails, is cancelled or loses its worker",
    ]


def _devices(args: argparse.Namespace, times: Mapping[str, ServiceTimes], front: FrontTimes) -> Iterator[Figures]:
    kind = Kind(args.size, args.steps)
    for precision, each in times.items():
        for slack in args.slack:
            for rate in args.rates:
                p95_s = round(slack * each.job_s(kind), 1)
                asked: Figures = {"precision": precision, "size": kind.size, "rate": rate, "p95_target_s": p95_s}
                found = capacity.devices_needed(rate, p95_s, kind, each, front, Policy())
                yield asked | (found or {"devices": None})


def _batching(args: argparse.Namespace, times: Mapping[str, ServiceTimes], front: FrontTimes) -> Iterator[Figures]:
    policies = [("batching", Policy()), ("one at a time", Policy(is_batching=False))]
    return _compared(args, times, front, Kind(args.batching_size, args.steps), policies)


def _sequence(args: argparse.Namespace, times: Mapping[str, ServiceTimes], front: FrontTimes) -> Iterator[Figures]:
    parallel = Policy(ways=args.ways, speed_up=args.speed_up)
    policies = [("sequence parallel, assumed", parallel), (capacity.REPLICAS, Policy())]
    return _compared(args, times, front, Kind(args.size, args.steps), policies)


def _compared(
    args: argparse.Namespace,
    times: Mapping[str, ServiceTimes],
    front: FrontTimes,
    kind: Kind,
    policies: Sequence[tuple[str, Policy]],
) -> Iterator[Figures]:
    for precision, each in times.items():
        for figures in capacity.compared(args.devices, args.loads, kind, each, front, policies):
            yield {"precision": precision, "size": kind.size} | figures


def _fair_share(args: argparse.Namespace, times: Mapping[str, ServiceTimes], front: FrontTimes) -> Iterator[Figures]:
    precision, each = next(iter(times.items()))
    for devices in args.devices:
        for figures in capacity.shared_fairly(devices, 0.8, Kind(args.size, args.steps), each, front):
            yield {"precision": precision, "size": args.size} | figures


def _front(args: argparse.Namespace, times: Mapping[str, ServiceTimes], front: FrontTimes) -> Iterator[Figures]:
    kind = Kind(args.size, args.steps)
    limit_per_s = front.jobs_per_s(kind.steps)
    for precision, each in times.items():
        fed = int(limit_per_s * each.job_s(kind))
        yield {"precision": precision, "size": kind.size, "jobs_per_s": round(limit_per_s, 1), "devices_fed": fed}
        for figures in capacity.front_limit(args.devices, kind, each, front):
            yield {"precision": precision, "size": kind.size} | figures


_ANSWERS: dict[str, Callable[..., Iterator[Figures]]] = {
    "devices": _devices,
    "batching": _batching,
    "sequence_parallel": _sequence,
    "fair_share": _fair_share,
    "front": _front,
}


if __name__ == "__main__":
    raise SystemExit(main())
