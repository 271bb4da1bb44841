"""A front under load with as many stub workers as asked, and what its process costs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.live_server import LiveServer
from benchmarks.processes import ProcessEnded, free_port, running
from safelight.config import STUB_MODEL

KINDS = ("stub", "light")
"""``stub``: real worker processes with the engine's stub. ``light``: all of them in one process (light_workers.py)."""

_POLL_S = 0.1
_NO_LIMITS = {
    "queue-limit": 100_000,
    "queue-work-limit": 10**9,
    "hang-timeout-s": 999_999,
    "grace-period-s": 0,
    "log-level": "warning",
}


@dataclass(frozen=True, slots=True)
class Fleet:
    """Which workers a front has; a step takes ``step_s``, and ``rows`` pictures share it (stubs only)."""

    workers: int = 1
    kind: str = "light"
    step_s: float = 0.0
    rows: int = 1
    picture_bytes: int = 10_000


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process took so far, and what it holds now."""

    time_s: float
    cpu_s: float
    rss_mb: float

    def share_since(self, before: Cost) -> float:
        """Of one core."""
        return (self.cpu_s - before.cpu_s) / (self.time_s - before.time_s)


class MeasuredFront:
    """``python -m benchmarks.front_process``, ready; ``sent_steps`` is there once it has ended."""

    def __init__(self, server: LiveServer, port: int, process: psutil.Process, ready_s: float) -> None:
        self.server = server
        self.port = port
        self.process = process
        self.ready_s = ready_s

    def cost(self) -> Cost:
        """Of the front alone, without its workers."""
        times = self.process.cpu_times()
        rss_mb = self.process.memory_info().rss / 1e6
        return Cost(time.monotonic(), times.user + times.system, round(rss_mb, 1))

    def worker_mb(self, sample: int = 20) -> float:
        """Memory of a worker that no other process shares, on average over some of them."""
        children = self.process.children()[:sample]
        return round(sum(child.memory_full_info().uss for child in children) / len(children) / 1e6, 2)


@contextlib.contextmanager
def measured_front(
    fleet: Fleet, folder: Path, options: Sequence[str] = (), timeout_s: float = 600.0
) -> Iterator[MeasuredFront]:
    """All its workers are ready. Raises ``ProcessEnded`` with the end of its log if it or the measurement fails.

    Light workers leave the times of their steps in ``folder / "steps.json"`` at the end.
    """
    port, log = free_port(), folder / "front.log"
    defaults = [f"--{name}={value}" for name, value in _NO_LIMITS.items()]
    server_options = ["--port", str(port), "--data-dir", str(folder / "data"), "--model", STUB_MODEL]
    with contextlib.ExitStack() as stack:
        own = ["--workers", str(fleet.workers)]
        if fleet.kind == "light":
            own += ["--light", str(stack.enter_context(_light_workers(fleet, folder)))]
        stub = {"STUB_STEP_S": str(fleet.step_s), "STUB_ROWS": str(fleet.rows), "STUB_LOAD_S": "0"}
        command = ["-m", "benchmarks.front_process", *own, "--", *server_options, *defaults, *options]
        start_s = time.monotonic()
        with _environment(stub):
            process = stack.enter_context(running(command, log))
        server = stack.enter_context(contextlib.closing(LiveServer(f"http://127.0.0.1:{port}", timeout_s, process)))
        try:
            _wait_until_all_ready(server, process, fleet.workers, timeout_s)
            yield MeasuredFront(server, port, psutil.Process(process.pid), round(time.monotonic() - start_s, 2))
        except (OSError, ProcessEnded) as error:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise ProcessEnded(f"{error}\nthe front's log ends with:\n{tail}") from None


@contextlib.contextmanager
def _light_workers(fleet: Fleet, folder: Path) -> Iterator[Path]:
    address = folder / "workers"
    options = [f"--address={address}", f"--step-s={fleet.step_s}", f"--picture-bytes={fleet.picture_bytes}"]
    command = ["-m", "benchmarks.light_workers", *options, f"--record={folder / 'steps.json'}"]
    with running(command, folder / "workers.log", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "hosting\n":
            raise ProcessEnded(f"no light workers: {(folder / 'workers.log').read_text()[-2000:]}")
        yield address


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _wait_until_all_ready(server: LiveServer, process: subprocess.Popen[str], count: int, timeout_s: float) -> None:
    end_s = time.monotonic() + timeout_s
    while (ready := _ready_count(server)) < count:
        if process.poll() is not None:
            raise ProcessEnded(f"the front ended with exit code {process.returncode}")
        if time.monotonic() > end_s:
            raise ProcessEnded(f"{ready} of {count} workers were ready after {timeout_s:.0f} s")
        time.sleep(max(_POLL_S, count / 1000))  # the answer has all workers in it


def _ready_count(server: LiveServer) -> int:
    try:
        workers: list[dict[str, Any]] = server.status()["workers"]
    except OSError:
        return 0
    return sum(worker["state"] in ("ready", "busy") for worker in workers)
