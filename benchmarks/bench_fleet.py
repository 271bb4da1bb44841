"""Two devices against one: throughput as replicas, and the latency of one picture that both make together.

``python -m benchmarks.bench_fleet --model FOLDER``; README.md of this folder says how to read what it prints. Options
of the servers that it starts come after ``--``. ``--smoke`` runs it with the embedded model and two workers on the CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.live_server import LiveServer, split_options, started_server
from benchmarks.processes import ROOT, ProcessEnded, ended_by_signals
from benchmarks.record import Record
from benchmarks.serving_figures import measure_burst, measure_overhead
from benchmarks.traffic import Traffic
from safelight.config import EMBEDDED_MODEL
from safelight.errors import SafelightError
from safelight.setting_values import parse_size

_OUTPUT = ROOT / "benchmarks" / "results" / "fleet.json"
_POLL_S = 0.1
_LEAST_REPLICAS, _MOST_LATENCY = 1.95, 0.65
_MADE_BY_TWO = "safelight_team_jobs_total 2"
_SMOKE = ["--size", "256x256", "--steps", "6", "--burst", "6", "--repeats", "2"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if everything was measured, 1 if a process did not do its part."""
    options = list(sys.argv[1:] if arguments is None else arguments)
    own, server_options = split_options(options)
    args = _parser().parse_args([*_SMOKE, *own] if "--smoke" in own else own)
    record = Record(args.output, shlex.join(["python", "-m", "benchmarks.bench_fleet", *options]))
    try:
        with ended_by_signals():
            FleetRun(args, server_options, record).measure()
    except (ProcessEnded, OSError, SafelightError) as error:
        print(f"bench_fleet: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench_fleet",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default=EMBEDDED_MODEL, help="model of the servers that are started here")
    add("--devices", default="0,1", help="numbers of two CUDA devices")
    add("--size", type=_size, default="1024x1024", help="of all pictures, in pixels")
    add("--steps", type=int, default=28, help="denoising steps of all pictures")
    add("--burst", type=int, default=16, help="pictures at once for two devices; half as many for one")
    add("--repeats", type=int, default=5, help="pictures one after the other, for the median latency")
    add("--parallel", default="auto", help="the server's --sequence-parallel with two devices")
    add("--smoke", action="store_true", help="the embedded model and workers on the CPU; the figures mean nothing")
    add("--timeout", type=float, default=120.0, help="seconds that a start or a request may take")
    add("--log", type=Path, help="where the log of the server with two devices goes; with NCCL_DEBUG=INFO NCCL's too")
    add("--output", type=Path, default=_OUTPUT, help="where the result goes, as JSON")
    return parser


def _size(text: str) -> str:
    parse_size(text)
    return text


class FleetRun:
    """One server after the other. Raises ``OSError`` or ``ProcessEnded``; every figure is printed and kept at once."""

    def __init__(self, args: argparse.Namespace, server_options: Sequence[str], record: Record) -> None:
        self._args = args
        self._server_options = server_options
        self._record = record
        self._traffic = Traffic([args.size], args.steps, "distinct")
        self._begun_s = time.monotonic()

    def measure(self) -> None:
        """One device, then two."""
        self._record.put(size=self._args.size, steps=self._args.steps, model=self._args.model)
        with self._server(1) as server:
            (asked,) = self._traffic.at_once(1)
            first, other = (server.picture(dataclasses.replace(asked, seed=seed)) for seed in (1, 2))
            alone = self._latency(server, "one_device")
            single = self._throughput(server, "one_device", max(self._args.burst // 2, 1))
        with self._server(2) as server:
            self._get_to_know(server)
            together = self._latency(server, "two_devices")
            self._compare("latency", together / alone, _MOST_LATENCY, is_most=True)
            again = server.picture(dataclasses.replace(asked, seed=1))
            same, unlike = _difference(first, again), _difference(first, other)
            self._record.put(picture_difference={"same_seed": same, "another_seed": unlike})
            self._say(f"the same picture by both differs by {same:.2f} of 255 on average, another one by {unlike:.2f}")
            double = self._throughput(server, "two_devices", self._args.burst)
            self._compare("throughput", double / single, _LEAST_REPLICAS, is_most=False)

    def _get_to_know(self, server: LiveServer) -> None:
        """Each device makes one picture alone, then both make two together: those meet, and learn what it brings."""
        measure_burst(server, self._traffic.at_once(2), self._args.timeout)
        before = _made_by_two(server)
        for asked in self._traffic.at_once(2):
            drawn = server.draw(asked)
            self._say(f"two devices, to get to know each other: {drawn.seconds:.3f} s")
        if _made_by_two(server) == before:
            raise OSError("no picture was made by two devices")

    def _latency(self, server: LiveServer, name: str) -> float:
        before = _made_by_two(server)
        figures = measure_overhead(server, self._traffic.at_once(self._args.repeats))
        by_two = _made_by_two(server) - before
        seconds = figures["seconds"]["end_to_end"]
        denoise_s = figures["seconds"].get("stage denoise", {}).get("median", 0.0)
        self._record.put(**{f"{name}_latency": {**figures, "made_by_two": by_two}})
        self._say(
            f"{name.replace('_', ' ')}: median {seconds['median']:.3f} s, worst {seconds['worst']:.3f} s, "
            f"{1000 * denoise_s / self._args.steps:.1f} ms a step; {by_two} of {self._args.repeats} by both"
        )
        return float(seconds["median"])

    def _throughput(self, server: LiveServer, name: str, count: int) -> float:
        before = _made_by_two(server)
        figures = measure_burst(server, self._traffic.at_once(count), self._args.timeout)
        by_two = _made_by_two(server) - before
        self._record.put(**{f"{name}_burst": {"count": count, **figures, "made_by_two": by_two}})
        self._say(
            f"{name.replace('_', ' ')}: {count} at once in {figures['seconds']:.2f} s, {figures['images_per_s']:.3f} "
            f"images/s; {figures['failed'] + figures['refused']} failed, {by_two} by both"
        )
        return float(figures["images_per_s"])

    def _compare(self, name: str, ratio: float, limit: float, *, is_most: bool) -> None:
        is_kept = ratio <= limit if is_most else ratio >= limit
        self._record.put(**{f"{name}_ratio": round(ratio, 3)})
        verdict = "PASS" if is_kept else "FAIL"
        self._say(f"{verdict}  {name} of two over one: {ratio:.3f} (at {'most' if is_most else 'least'} {limit:g})")

    @contextlib.contextmanager
    def _server(self, devices: int) -> Iterator[LiveServer]:
        """Ready on all of so many devices."""
        args = self._args
        options = ["--model", args.model, "--warmup-sizes", args.size, *self._server_options]
        if args.smoke:
            program = ["-m", "benchmarks.front_process", "--workers", str(devices), "--"]
            options += ["--device", "cpu", "--sequence-parallel", "2"]
        else:
            program = ["run.py"]
            numbers = args.devices.split(",")[:devices]
            options += ["--device", f"cuda:{','.join(numbers)}", "--sequence-parallel", args.parallel]
        with (
            tempfile.TemporaryDirectory(prefix="safelight-bench-") as folder,
            started_server(options, Path(folder), args.timeout, program) as server,
        ):
            server.wait_until_ready()
            _wait_for_all(server, args.timeout)
            self._say(f"{devices} of {devices} devices ready")
            try:
                yield server
            finally:
                if args.log and devices > 1:
                    shutil.copy(Path(folder) / "server.log", args.log)

    def _say(self, line: str) -> None:
        print(f"{time.monotonic() - self._begun_s:6.1f} s  {line}", flush=True)


def _difference(one: bytes, other: bytes) -> float:
    pixels = [np.asarray(Image.open(io.BytesIO(data)), dtype=np.float32) for data in (one, other)]
    return round(float(np.abs(pixels[0] - pixels[1]).mean()), 3)


def _made_by_two(server: LiveServer) -> int:
    return int(server.totals().get(_MADE_BY_TWO, 0))


def _wait_for_all(server: LiveServer, timeout_s: float) -> None:
    end_s = time.monotonic() + timeout_s
    while (states := {worker["state"] for worker in server.status()["workers"]}) != {"ready"}:
        if time.monotonic() > end_s or "failed" in states:
            raise OSError(f"not all workers are ready: {', '.join(sorted(states))}")
        time.sleep(_POLL_S)


if __name__ == "__main__":
    raise SystemExit(main())
