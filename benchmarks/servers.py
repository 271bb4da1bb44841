"""One server's whole life under the hammer: start, load, a rest, some images, and the end."""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.hammer import Recording, read_recording
from benchmarks.latency import HammerCost, PhaseFigures, hammer_cost, phase_figures
from benchmarks.machine import OtherProcesses
from benchmarks.processes import free_port, marks, running, stop, wait_for_mark
from benchmarks.workload import Workload

SERVERS = ("safelight", "thread", "naive")
PHASES = ("import", "load", "warmup", "idle", "generate")

_READY_TIMEOUT_S = 300.0
_REQUEST_TIMEOUT_S = 300.0
_IDLE_S = 2.0
_READYZ_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class ServerRun:
    """One repeat of one server; times in seconds from the start of its process.

    ``others_share`` is how much of all cores went to processes that have nothing to do with the benchmark.
    """

    first_200_s: float
    ready_s: float
    image_s: list[float]
    phases: dict[str, PhaseFigures]
    hammer: HammerCost
    others_share: float


def measure(kind: str, workload: Workload, images: int, folder: Path) -> ServerRun:
    """Runs one of ``SERVERS`` from start to end. Raises ``ProcessEnded`` or ``OSError`` if it does not work."""
    port = free_port()
    log = folder / "server.log"
    others = OtherProcesses()
    with hammering(port, folder) as stop_hammer:
        started_s = time.time()
        with running(command(kind, workload, port, folder), log) as process:
            ready_s = wait_until_ready(kind, process, port, log)
            time.sleep(_IDLE_S)
            generate_s = time.time()
            image_s = [timed_image(kind, port, workload, seed) for seed in range(images)]
            done_s = time.time()
            recording = stop_hammer()
    found = marks(log) | {"ready": ready_s, "generate": generate_s, "done": done_s}
    first_200_s = recording.answered_s[0]
    # From the first answer on, what comes before the load counts as part of the import.
    found["import"] = min(found["import"], first_200_s)
    bounds = [found[name] for name in ("import", "load", "warmup", "ready", "generate", "done")]
    return ServerRun(
        first_200_s - started_s,
        ready_s - started_s,
        image_s,
        {
            phase: phase_figures(_from(recording, first_200_s), start_s, end_s)
            for phase, (start_s, end_s) in zip(PHASES, itertools.pairwise(bounds), strict=True)
        },
        hammer_cost(recording),
        others.share(),
    )


def _from(recording: Recording, first_200_s: float) -> Recording:
    """Without the ticks due before the first answer: the time to that answer is a figure of its own."""
    first = next((index for index, due in enumerate(recording.due_s) if due >= first_200_s), len(recording.due_s))
    return Recording(
        recording.due_s[first:],
        recording.sent_s[first:],
        recording.answered_s[first:],
        recording.late_s,
        recording.refused,
        recording.lost,
        recording.cpu_s,
        recording.wall_s,
    )


def command(kind: str, workload: Workload, port: int, folder: Path) -> Sequence[str]:
    """Arguments of ``python`` that start the server on the CPU."""
    if kind == "safelight":
        data_dir = folder / "data"
        own = {"--data-dir": data_dir, "--model": workload.model, "--device": "cpu", "--warmup-sizes": workload.size}
        return ["run.py", "--port", str(port), *(str(part) for option in own.items() for part in option)]
    request = json.dumps(workload.pipeline_arguments(seed=0))
    options = ["--port", str(port), "--model", str(workload.path), "--request", request]
    return ["-m", "benchmarks.alternatives", kind, *options]


@contextlib.contextmanager
def hammering(port: int, folder: Path) -> Iterator[Callable[[], Recording]]:
    """A hammer that runs already; calling the value ends it and returns what it recorded."""
    output = folder / "hammer.json"
    arguments = ["-m", "benchmarks.hammer", "--port", str(port), "--output", str(output)]
    with running(arguments, folder / "hammer.log", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()

        def finish() -> Recording:
            stop(process)
            return read_recording(output)

        yield finish


def wait_until_ready(kind: str, process: subprocess.Popen[str], port: int, log: Path) -> float:
    """When the server took work, in seconds since the epoch: for ours the first 200 of ``/readyz``.

    It is asked only once the log says so: a probe that asks all the time would be measured along.
    """
    wait_for_mark(process, log, "ready", _READY_TIMEOUT_S)
    if kind != "safelight":
        return marks(log)["ready"]
    while _ask(port, "GET", "/readyz")[0] != 200:
        time.sleep(_READYZ_POLL_S)
    return time.time()


def timed_image(kind: str, port: int, workload: Workload, seed: int) -> float:
    """Seconds from sending a request to having the picture's bytes. Raises ``OSError`` if there is no picture."""
    start = time.perf_counter()
    if kind == "safelight":
        status, body = _ask(port, "POST", "/v1/images/generations", workload.images_request(seed))
        picture = base64.b64decode(json.loads(body)["data"][0]["b64_json"]) if status == 200 else b""
    else:
        status, picture = _ask(port, "POST", "/generate", workload.pipeline_arguments(seed))
        body = picture
    seconds = time.perf_counter() - start
    if status != 200 or not picture.startswith(b"\x89PNG"):
        raise OSError(f"{kind} answered {status}: {body[:500]!r}")
    return seconds


def _ask(port: int, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_REQUEST_TIMEOUT_S)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
