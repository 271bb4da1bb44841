"""Many sizes and batches in one process: whether every request is answered, and how long a shape's first use takes.

``python -m benchmarks.bench_shapes``; README.md of this folder says how to read what it prints. Options of the server
come after ``--``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.live_server import LiveServer, gained, split_options, started_server
from benchmarks.load_client import send_all
from benchmarks.processes import ROOT, ProcessEnded, ended_by_signals
from benchmarks.record import Record
from benchmarks.traffic import Traffic
from safelight.config import EMBEDDED_MODEL
from safelight.errors import SafelightError

_OUTPUT = ROOT / "benchmarks" / "results" / "shapes.json"
_SIZES = "256x256,256x384,384x256,512x512,512x768,768x512,640x640,768x768,768x1024,1024x768,1024x1024,1280x768"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every request was answered with a picture, 1 if not."""
    options = list(sys.argv[1:] if arguments is None else arguments)
    own, server_options = split_options(options)
    args = _parser().parse_args(own)
    record = Record(args.output, shlex.join(["python", "-m", "benchmarks.bench_shapes", *options]))
    try:
        with (
            ended_by_signals(),
            tempfile.TemporaryDirectory(prefix="safelight-bench-") as folder,
            started_server(["--model", args.model, *server_options], Path(folder), args.timeout) as server,
        ):
            server.wait_until_ready()
            return 0 if _measure_all(args, server, record) else 1
    except (ProcessEnded, OSError, SafelightError) as error:
        print(f"bench_shapes: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench_shapes",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="the embedded model, or a checkpoint directory")
    parser.add_argument("--sizes", default=_SIZES, help="in pixels, separated by commas")
    parser.add_argument("--batches", type=int, default=8, help="from 1 to so many requests at once, of each size")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that a start or a request may take")
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="where the result goes, as JSON")
    return parser


def _measure_all(args: argparse.Namespace, server: LiveServer, record: Record) -> bool:
    sizes = args.sizes.split(",")
    traffic = Traffic(sizes, args.steps, "examples")
    outcomes: Counter[str] = Counter()
    for size in sizes:
        for count in range(1, args.batches + 1):
            figure = _measure(args, server, traffic, size, count)
            record.append("shapes", figure)
            outcomes.update(figure["outcomes"])
            print("{size} x {count}: {seconds:.2f} s, {jobs_per_step} jobs a step, {outcomes}".format(**figure))
    status = server.status()
    restarts = sum(worker["restarts"] for worker in status["workers"])
    failed = outcomes.total() - outcomes["ok"]
    record.put(model=status["model"], requests=outcomes.total(), failed=failed, worker_restarts=restarts)
    print(f"{outcomes.total()} requests, {failed} failed, {restarts} restarts of a worker")
    return not (failed or restarts)


def _measure(args: argparse.Namespace, server: LiveServer, traffic: Traffic, size: str, count: int) -> dict[str, Any]:
    """``count`` requests of one size at once; ``seconds`` is until the last is answered."""
    before = server.totals()
    answered = send_all(server.url, traffic.at_once(count, [size]), args.timeout)
    after = server.totals()
    steps = gained(before, after, "safelight_batch_jobs_count")
    jobs = gained(before, after, "safelight_batch_jobs_sum")
    return {
        "size": size,
        "count": count,
        "outcomes": dict(Counter(answer.outcome for answer in answered)),
        "seconds": max(answer.latency_s for answer in answered),
        "jobs_per_step": round(jobs / steps, 2) if jobs and steps else None,
    }


if __name__ == "__main__":
    raise SystemExit(main())
