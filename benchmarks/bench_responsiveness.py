"""How responsive a FLUX server stays while it loads and draws: Safelight, a thread, and the naive way, side by side.

``python -m benchmarks.bench_responsiveness``; README.md of this folder says how to read what it prints.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import circumstances
from benchmarks.overhead import Overhead, measure_overhead
from benchmarks.processes import ROOT, ProcessEnded, ended_by_signals
from benchmarks.report import as_json, as_table
from benchmarks.servers import SERVERS, ServerRun, measure
from benchmarks.targets import check_targets
from benchmarks.workload import Workload
from safelight.errors import SafelightError

_OUTPUT = ROOT / "benchmarks" / "results" / "responsiveness.json"
_OVERHEAD_SIZE = "256x256"
_QUIET_SHARE = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if Safelight keeps its promises, 1 if not or if a server did not work, 2 for wrong usage."""
    options = sys.argv[1:] if arguments is None else arguments
    args = _parser().parse_args(options)
    try:
        workload = Workload.of(args.model, args.size, args.steps)
        small = Workload.of(args.model, _OVERHEAD_SIZE, args.steps)
    except (SafelightError, ValueError) as error:
        print(f"bench_responsiveness: {error}", file=sys.stderr)
        return 2
    command = shlex.join(["python", "-m", "benchmarks.bench_responsiveness", *options])
    where = circumstances(command)
    try:
        with ended_by_signals():
            runs = _measure_all(workload, args.repeats, args.images)
            overhead = _measure_overhead(small, args.pairs) if args.pairs else None
    except (ProcessEnded, OSError) as error:
        print(f"bench_responsiveness: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    checks = check_targets(runs["safelight"], overhead)
    print("\n" + as_table(runs, overhead))
    print("\n" + "\n".join(check.line() for check in checks))
    shares = [run.others_share for repeats in runs.values() for run in repeats]
    _warn_of_noise(shares + ([overhead.others_share] if overhead else []))
    result = {**where, **as_json(workload, runs, overhead), "targets": [check.as_json() for check in checks]}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(check.passed for check in checks) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench_responsiveness",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="safelight/shapes", help="the embedded model, or a checkpoint directory")
    parser.add_argument("--repeats", type=_positive, default=1, help="lives of each server")
    parser.add_argument("--images", type=_positive, default=3, help="images that each server draws per life")
    parser.add_argument("--pairs", type=int, default=9, help="images of each kind for the overhead; 0 leaves it out")
    parser.add_argument("--size", metavar="WxH", help="size in pixels, instead of the model's default")
    parser.add_argument("--steps", type=_positive, help="denoising steps, instead of the model's default")
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="where the result goes, as JSON")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _measure_all(workload: Workload, repeats: int, images: int) -> dict[str, list[ServerRun]]:
    """The kinds take turns, so that a machine that grows slower does so for all of them."""
    runs: dict[str, list[ServerRun]] = {kind: [] for kind in SERVERS}
    for repeat in range(repeats):
        for kind in SERVERS:
            print(f"repeat {repeat + 1} of {repeats}: {kind} ...", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="safelight-bench-") as folder:
                runs[kind].append(measure(kind, workload, images, Path(folder)))
    return runs


def _warn_of_noise(shares: Sequence[float]) -> None:
    if max(shares) > _QUIET_SHARE:
        print(f"\nNote: other processes took up to {max(shares):.0%} of the cores: do not trust these figures.")


def _measure_overhead(workload: Workload, pairs: int) -> Overhead:
    print("overhead of HTTP ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="safelight-bench-") as folder:
        return measure_overhead(workload, pairs, Path(folder))


if __name__ == "__main__":
    raise SystemExit(main())
