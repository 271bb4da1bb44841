"""What traces cost: the same server with and without a collector, in turns, with an engine whose steps take no time.

``python -m benchmarks.bench_tracing``. CPU seconds count, since they hold on a machine that does other things, too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2 as httpx
import psutil

from benchmarks.live_server import LiveServer, started_server
from benchmarks.processes import ROOT
from benchmarks.record import Record
from safelight.config import STUB_MODEL

_OUTPUT = ROOT / "benchmarks" / "results" / "tracing.json"
_STEPS = (4, 200)
_SENT_AFTER_S = 1.5
"""Spans are sent once a second."""


@dataclass(frozen=True, slots=True)
class Side:
    """A server, and its two processes."""

    server: LiveServer
    processes: list[psutil.Process]

    def cpu_s(self) -> float:
        """CPU seconds of both so far."""
        times = [process.cpu_times() for process in self.processes]
        return sum(each.user + each.system for each in times)


def main() -> int:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(prog="bench_tracing", description=__doc__, allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=9, help="how often each side has its turn")
    parser.add_argument("--jobs", type=int, default=40, help="jobs of a turn")
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="where the result goes, as JSON")
    args = parser.parse_args()
    os.environ |= {"STUB_STEP_S": "0", "STUB_LOAD_S": "0"}
    record = Record(args.output, shlex.join(["python", "-m", "benchmarks.bench_tracing", *sys.argv[1:]]))
    with _collector() as url, _side() as off, _side("--otlp-endpoint", url) as on:
        added_s: list[float] = []
        for steps in _STEPS:
            turns = [(_cpu_s(off, steps, args.jobs), _cpu_s(on, steps, args.jobs)) for _ in range(args.repeats)]
            without, traced = (statistics.median(side) / args.jobs for side in zip(*turns, strict=True))
            figure = {"steps": steps, "cpu_ms": _ms(without), "traced_cpu_ms": _ms(traced)}
            record.append("jobs", figure)
            print(figure)
            added_s.append(traced - without)
    per_step_s = (added_s[1] - added_s[0]) / (_STEPS[1] - _STEPS[0])
    record.put(added_ms_per_job=_ms(added_s[0] - per_step_s * _STEPS[0]), added_us_per_step=_ms(per_step_s * 1e3))
    return 0


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def _cpu_s(side: Side, steps: int, jobs: int) -> float:
    """Of so many jobs, one after the other, and of sending their spans."""
    before_s = side.cpu_s()
    body = {"prompt": "a", "num_inference_steps": steps, "width": 64, "height": 64}
    for _ in range(jobs):
        httpx.post(f"{side.server.url}/v1/images/generations", json=body, timeout=60).raise_for_status()
    time.sleep(_SENT_AFTER_S)
    return side.cpu_s() - before_s


@contextlib.contextmanager
def _side(*options: str) -> Iterator[Side]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with started_server(["--model", STUB_MODEL, *options], folder, 60) as server:
            server.wait_until_ready()
            front = psutil.Process(int((folder / "data" / "lock").read_text()))
            yield Side(server, [front, *front.children()])


@contextlib.contextmanager
def _collector() -> Iterator[str]:
    """Takes everything, in this process."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


if __name__ == "__main__":
    sys.exit(main())
