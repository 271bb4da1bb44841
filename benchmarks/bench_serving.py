"""Load on a running server: throughput and latency by rate of arrival, bursts, and what serving adds to the engine.

``python -m benchmarks.bench_serving --rates 0.5,1,2``; README.md of this folder says how to read what it prints.
Options of the server that it starts come after ``--``.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.live_server import LiveServer, split_options, started_server
from benchmarks.processes import ROOT, ProcessEnded, ended_by_signals
from benchmarks.record import Record
from benchmarks.reference import Reference, started_reference
from benchmarks.serving_run import ServingRun
from benchmarks.traffic import DEFAULT_SIZE, PROMPTS
from benchmarks.workload import Workload
from safelight.config import EMBEDDED_MODEL
from safelight.errors import SafelightError
from safelight.setting_values import parse_size

_OUTPUT = ROOT / "benchmarks" / "results" / "serving.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if everything was measured, 1 if a process did not do its part, 2 for wrong usage."""
    options = list(sys.argv[1:] if arguments is None else arguments)
    own, server_options = split_options(options)
    args = _parser().parse_args(own)
    if problem := _wrong_usage(args, server_options):
        print(f"bench_serving: {problem}", file=sys.stderr)
        return 2
    record = Record(args.output, shlex.join(["python", "-m", "benchmarks.bench_serving", *options]))
    try:
        with ended_by_signals(), _both_sides(args, server_options) as (server, reference):
            ServingRun(args, server, reference, record).measure()
    except (ProcessEnded, OSError, SafelightError) as error:
        print(f"bench_serving: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench_serving",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--url", help="a server that runs already, instead of one that is started here")
    add("--model", default=EMBEDDED_MODEL, help="model of the server that is started here")
    add("--device", default="auto", help="device of that server and of the reference")
    add("--rates", type=_list_of(float), default=[], help="images per second that arrive, such as 0.5,1,2")
    add("--seconds", type=float, default=60.0, help="how long requests arrive at each rate")
    add("--burst", type=_list_of(int), default=[], help="requests at once, such as 8,16")
    add("--repeats", type=int, default=3, help="of each burst")
    add("--overhead", type=int, default=0, metavar="N", help="N images of each size, one at a time")
    add("--sizes", type=_list_of(_size), default=[DEFAULT_SIZE], help="sizes in pixels; auto: the model's")
    add("--steps", type=int, help="denoising steps, instead of the model's")
    add("--prompts", choices=PROMPTS, default=PROMPTS[0], help="examples in turn, the same, or each a new one")
    add("--preview-share", type=float, default=0.25, help="share of requests at a rate that stream previews")
    add("--seed", type=int, default=0, help="of the random arrivals")
    add("--warmup", type=int, default=1, help="images of each size at once before the measurement, not counted")
    add("--reference", action="store_true", help="each burst also one after another with diffusers, in turns")
    add("--reference-compile", action="store_true", help="the same, with compile_repeated_blocks on CUDA")
    add("--timeout", type=float, default=600.0, help="seconds that a request or a start may take")
    add("--output", type=Path, default=_OUTPUT, help="where the result goes, as JSON")
    return parser


def _list_of(kind: Any) -> Any:
    def parse(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    parse.__name__ = "comma-separated"  # for argparse's message
    return parse


def _size(text: str) -> str:
    if text != DEFAULT_SIZE:
        parse_size(text)
    return text


def _wrong_usage(args: argparse.Namespace, server_options: Sequence[str]) -> str | None:
    if not (args.rates or args.burst or args.overhead):
        return "nothing to measure: give --rates, --burst or --overhead"
    if min([*args.rates, *args.burst, args.repeats, args.seconds, args.timeout]) <= 0:
        return "rates, bursts, repeats and times must be above 0"
    if args.url and (server_options or args.reference or args.reference_compile):
        return "--url leaves nothing to start: no --reference and no options of a server"
    return None


@contextlib.contextmanager
def _both_sides(
    args: argparse.Namespace, server_options: Sequence[str]
) -> Iterator[tuple[LiveServer, Reference | None]]:
    """The server and, if asked for, diffusers; both loaded."""
    if args.url:
        yield LiveServer(args.url, args.timeout), None
        return
    options = ["--model", args.model, "--device", args.device]
    if sizes := [size for size in args.sizes if size != DEFAULT_SIZE]:
        options += ["--warmup-sizes", ",".join(sizes)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="safelight-bench-")))
        # First the reference: what it leaves of the card's memory is then what the server plans with.
        reference = _reference(args, folder, stack)
        server = stack.enter_context(started_server([*options, *server_options], folder, args.timeout))
        server.wait_until_ready()
        yield server, reference


def _reference(args: argparse.Namespace, folder: Path, stack: contextlib.ExitStack) -> Reference | None:
    if not (args.reference or args.reference_compile):
        return None
    options = ["--device", args.device, *(["--compile"] if args.reference_compile else [])]
    path = Workload.of(args.model).path
    return stack.enter_context(started_reference(path, options, folder, args.timeout))


if __name__ == "__main__":
    raise SystemExit(main())
