"""Is the front the limit? Submits, followers, workers and the cost of a job, with workers that only keep time.

``python -m benchmarks.bench_front``; README.md of this folder says how to read what it prints.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import front_scenarios
from benchmarks.front_scenarios import JOB_STREAM, STATUS_STREAM, Figures
from benchmarks.machine import OtherProcesses
from benchmarks.measured_front import KINDS, Fleet
from benchmarks.processes import ROOT, ProcessEnded, ended_by_signals
from benchmarks.record import Record

SCENARIOS = ("submits", "waiting", "history", "workers", "followers")

_OUTPUT = ROOT / "benchmarks" / "results" / "front.json"
_QUIET_SHARE = 0.05
_BUSY_SHARE = 0.8
"""Of a core: a client that takes more may be what limits."""

_QUICK = {
    "clients": [8],
    "seconds": 0.5,
    "depths": [100],
    "milestones": [50],
    "window": 50,
    "workers": [4],
    "followers": [20],
    "idle": 0.2,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if everything was measured, 1 if a process did not do its part."""
    options = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(options)
    if args.quick:
        vars(args).update(_QUICK)
    record = Record(args.output, shlex.join(["python", "-m", "benchmarks.bench_front", *options]))
    record.put(fsync_ms=front_scenarios.fsync_ms(), **(_earlier(args) if args.add else {}))
    try:
        with ended_by_signals():
            for scenario in args.scenarios:
                _run(scenario, args, record)
    except (ProcessEnded, OSError) as error:
        print(f"bench_front: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _earlier(args: argparse.Namespace) -> dict[str, Any]:
    """Figures of scenarios that are not measured now, and with which commands those in the file were."""
    found: dict[str, Any] = json.loads(args.output.read_text()) if args.output.exists() else {}
    kept = {name: found[name] for name in SCENARIOS if name in found and name not in args.scenarios}
    return kept | {"earlier_commands": [*found.get("earlier_commands", []), found["command"]]} if kept else {}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench_front",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--scenarios", type=_scenarios, default=list(SCENARIOS), help="which, such as submits,followers")
    add("--quick", action="store_true", help="everything at small sizes, to see that it works")
    add("--clients", type=_counts, default=[1, 16, 64], help="submits: connections that ask at once")
    add("--seconds", type=float, default=10.0, help="submits: for each number of clients")
    add("--depths", type=_counts, default=[0, 1000, 5000], help="waiting: jobs in the queue")
    add("--milestones", type=_counts, default=[1000, 10000, 50000], help="history: jobs made before")
    add("--window", type=int, default=1000, help="history, workers and waiting: jobs that are measured")
    add("--steps", type=_counts, default=[1, 28], help="history: denoising steps of those jobs")
    add("--workers", type=_counts, default=[1, 10, 100, 1000], help="workers: how many")
    add("--kind", choices=KINDS, default=KINDS[1], help="workers: real processes, or light stand-ins")
    add("--step-s", type=float, default=0.05, help="workers: seconds of a step")
    add("--idle", type=float, default=5.0, help="workers: seconds without a job")
    add("--followers", type=_counts, default=[100, 1000, 5000], help="followers: how many")
    add("--streams", type=_streams, default=[JOB_STREAM, STATUS_STREAM], help="followers: of what")
    add("--add", action="store_true", help="keep what --output holds of other scenarios")
    add("--output", type=Path, default=_OUTPUT, help="where the result goes, as JSON")
    return parser


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _scenarios(text: str) -> list[str]:
    return _some(text, SCENARIOS)


def _streams(text: str) -> list[str]:
    return _some(text, (JOB_STREAM, STATUS_STREAM))


def _some(text: str, known: Sequence[str]) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(known):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    return names


def _run(scenario: str, args: argparse.Namespace, record: Record) -> None:
    """Each figure is printed and written as soon as its processes are gone."""
    others = OtherProcesses()
    for found in _SCENARIOS[scenario](args):
        others_share, others = round(others.share(), 3), OtherProcesses()
        for figures in found:
            record.append(scenario, figures | {"others_share": others_share})
            print(f"{scenario}: {_line(figures)}", flush=True)
            if max(_client_shares(figures), default=0.0) > _BUSY_SHARE:
                print("  do not trust this: the client had little time left", flush=True)
        if others_share > _QUIET_SHARE:
            print(f"  do not trust this: other processes took {others_share:.0%} of the cores", flush=True)


def _client_shares(figures: Any) -> Iterator[float]:
    if isinstance(figures, dict):
        for name, value in figures.items():
            yield from [value] if name == "client_cpu_share" else _client_shares(value)


def _line(figures: Figures) -> str:
    return ", ".join(f"{name} {_line(value) if isinstance(value, dict) else value}" for name, value in figures.items())


def _submits(args: argparse.Namespace) -> Iterator[list[Figures]]:
    for clients in args.clients:
        yield [front_scenarios.submits(clients, args.seconds)]


def _waiting(args: argparse.Namespace) -> Iterator[list[Figures]]:
    for depth in args.depths:
        yield [front_scenarios.waiting(depth, args.window)]


def _history(args: argparse.Namespace) -> Iterator[list[Figures]]:
    yield front_scenarios.history(args.milestones, args.window, args.steps, workers=64, clients=64)


def _workers(args: argparse.Namespace) -> Iterator[list[Figures]]:
    for count in args.workers:
        yield [front_scenarios.workers(Fleet(count, args.kind, args.step_s), args.idle, args.window, steps=4)]


def _followers(args: argparse.Namespace) -> Iterator[list[Figures]]:
    step_s, steps = (0.1, 10) if args.quick else (1.0, 20)
    for stream in args.streams:
        for count in args.followers:
            yield [front_scenarios.followers(stream, count, step_s, steps)]


_SCENARIOS: dict[str, Callable[[argparse.Namespace], Iterator[list[Figures]]]] = {
    "submits": _submits,
    "waiting": _waiting,
    "history": _history,
    "workers": _workers,
    "followers": _followers,
}


if __name__ == "__main__":
    raise SystemExit(main())
