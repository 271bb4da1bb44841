"""How long a start takes until the first picture: Safelight and diffusers compiled, each with cold and warm caches.

``python -m benchmarks.bench_restart``; README.md of this folder says how to read what it prints. Options of the server
come after ``--``.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.latency import median_and_worst
from benchmarks.live_server import split_options, started_server
from benchmarks.machine import OtherProcesses
from benchmarks.processes import ROOT, ProcessEnded, ended_by_signals
from benchmarks.record import Record
from benchmarks.reference import started_reference
from benchmarks.traffic import Asked
from benchmarks.workload import Workload
from safelight.config import EMBEDDED_MODEL
from safelight.errors import SafelightError

_OUTPUT = ROOT / "benchmarks" / "results" / "restart.json"
_READ_BYTES = 16 * 2**20

Start = dict[str, Any]
"""One start: seconds from the start of the process to ready and to the first picture, and those of each phase."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if everything was measured, 1 if a process did not do its part, 2 for wrong usage."""
    options = list(sys.argv[1:] if arguments is None else arguments)
    own, server_options = split_options(options)
    args = _parser().parse_args(own)
    try:
        workload = Workload.of(args.model, args.size, args.steps)
    except (SafelightError, ValueError) as error:
        print(f"bench_restart: {error}", file=sys.stderr)
        return 2
    record = Record(args.output, shlex.join(["python", "-m", "benchmarks.bench_restart", *options]))
    record.put(model=workload.model, size=workload.size, num_inference_steps=workload.num_inference_steps)
    others = OtherProcesses()
    try:
        with ended_by_signals():
            _measure_all(args, workload, server_options, record)
    except (ProcessEnded, OSError, subprocess.SubprocessError) as error:
        print(f"bench_restart: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    record.put(others_share=round(others.share(), 3))
    print(f"other processes took {others.share():.0%} of the cores")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench_restart",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="the embedded model, or a checkpoint directory")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto, for both sides")
    parser.add_argument("--size", metavar="WxH", help="size in pixels, instead of the model's default")
    parser.add_argument("--steps", type=int, help="denoising steps, instead of the model's default")
    parser.add_argument("--repeats", type=int, default=3, help="of all starts, in turns")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds that a start or a picture may take")
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="where the result goes, as JSON")
    return parser


def _measure_all(args: argparse.Namespace, workload: Workload, server_options: Sequence[str], record: Record) -> None:
    """Each repeat begins with empty folders; the second start of each kind finds what the first left there."""

    def safelight(folder: Path) -> Start:
        options = ["--device", args.device, *server_options]
        return _start_safelight(workload, options, folder, args.timeout)

    def diffusers(folder: Path) -> Start:
        return _start_diffusers(workload, args.device, folder, args.timeout)

    _fill_page_cache(workload.path, args.timeout)
    starts: dict[str, list[Start]] = {}
    for _ in range(args.repeats):
        for name, start in (("Safelight", safelight), ("diffusers", diffusers)):
            with tempfile.TemporaryDirectory(prefix="safelight-bench-") as folder:
                for caches in ("cold", "warm"):
                    found = start(Path(folder))
                    starts.setdefault(f"{name}, {caches} caches", []).append(found)
                    print(_line(f"{name}, {caches} caches", found), flush=True)
                    record.put(starts=starts, summary=_summary(starts))


def _fill_page_cache(weights: Path, timeout_s: float) -> None:
    """All starts find weights and libraries in memory, or the first one alone would wait for the disk."""
    for path in weights.rglob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.read(_READ_BYTES):
                pass
    subprocess.run([sys.executable, "-c", "from diffusers import FluxPipeline"], check=True, timeout=timeout_s)


def _start_safelight(workload: Workload, options: Sequence[str], folder: Path, timeout_s: float) -> Start:
    asked = Asked(0.0, workload.prompt, workload.size, workload.num_inference_steps, seed=0)
    start_s = time.monotonic()
    own = ["--model", workload.model, "--warmup-sizes", workload.size]
    with started_server([*own, *options], folder, timeout_s) as server:
        server.wait_until_ready()
        ready_s = time.monotonic() - start_s
        server.draw(asked)
        first_image_s = time.monotonic() - start_s
        return _start(ready_s, first_image_s, server.status()["workers"][0]["phase_seconds"])


def _start_diffusers(workload: Workload, device: str, folder: Path, timeout_s: float) -> Start:
    """Loaded is all that it can be before the first picture: what compiling takes is inside that."""
    start_s = time.monotonic()
    options = ["--device", device, "--compile", "--cache-dir", str(folder)]
    with started_reference(workload.path, options, folder, timeout_s) as reference:
        ready_s = time.monotonic() - start_s
        reference.draw([workload.pipeline_arguments(seed=0)])
        first_image_s = time.monotonic() - start_s
        facts = dict(reference.facts)
        return _start(ready_s, first_image_s, facts.pop("phase_seconds")) | facts


def _start(ready_s: float, first_image_s: float, phase_seconds: Mapping[str, float]) -> Start:
    phases = {name: round(seconds, 3) for name, seconds in phase_seconds.items()}
    return {"ready_s": round(ready_s, 3), "first_image_s": round(first_image_s, 3), "phase_seconds": phases}


def _summary(starts: Mapping[str, Sequence[Start]]) -> dict[str, Any]:
    return {
        kind: {name: median_and_worst([start[name] for start in found]) for name in ("ready_s", "first_image_s")}
        for kind, found in starts.items()
    }


def _line(kind: str, start: Start) -> str:
    phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in start["phase_seconds"].items())
    return f"{kind}: ready {start['ready_s']:.2f} s, first picture {start['first_image_s']:.2f} s ({phases})"


if __name__ == "__main__":
    raise SystemExit(main())
