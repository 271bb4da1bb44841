"""SIGTERM and SIGINT in every phase, and the ends that nobody planned."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2 as httpx
import pytest

from safelight.config import STUB_MODEL
from tests.server_process import ServerProcess, gone

SLOW_STEPS = {"STUB_STEP_S": "0.05"}
STUB = ("--model", STUB_MODEL)
_PHASES: dict[str, Callable[[ServerProcess], object]] = {
    "start": lambda server: None,
    "import": lambda server: server.wait_for_line(r"cpu import"),
    "load": lambda server: server.wait_for_line(r"cpu weights "),
    "warm-up": lambda server: server.wait_for_line(r"cpu warmup"),
    "idle": lambda server: server.wait_until_ready(),
}
_SIGNALS = [
    pytest.param(phase, number, id=f"{phase}-{number.name}", marks=[pytest.mark.slow] * is_slow)
    for phase in _PHASES
    for number, is_slow in ((signal.SIGTERM, False), (signal.SIGINT, phase not in ("start", "idle")))
]


@pytest.mark.timed
@pytest.mark.parametrize(("phase", "number"), _SIGNALS)
def test_a_signal_ends_everything_with_exit_code_0(phase: str, number: signal.Signals, tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        _PHASES[phase](server)
        workers = server.worker_pids()
        start_s = time.monotonic()
        assert server.stop(number) == 0
        assert time.monotonic() - start_s < 4
        assert gone(workers)
        assert not [line for line in server.lines if "Traceback" in line]


@pytest.mark.timed
def test_a_running_image_finishes_within_the_grace_period(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        server.wait_until_ready()
        answers: list[httpx.Response] = []
        running = threading.Thread(target=lambda: answers.append(server.generate(num_inference_steps=40)))
        running.start()
        server.wait_until(lambda status: (status["workers"][0]["job"] or {"step": 0})["step"] >= 1)
        workers = server.worker_pids()
        server.process.send_signal(signal.SIGTERM)
        signalled_s = time.monotonic()
        while server.get("/readyz").status_code == 200:
            assert time.monotonic() - signalled_s < 0.1
        assert server.get("/livez").status_code == 200
        assert server.status()["status"] == "draining"
        refused = server.generate()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        running.join(60)
        assert answers[0].status_code == 200
        assert server.process.wait(30) == 0
        assert gone(workers)


@pytest.mark.timed
def test_an_image_that_outlasts_the_grace_period_is_cancelled(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--grace-period-s", "0.3", *STUB, environment=SLOW_STEPS) as server:
        server.wait_until_ready()
        answers: list[httpx.Response] = []
        running = threading.Thread(target=lambda: answers.append(server.generate(num_inference_steps=100, n=10)))
        running.start()
        server.wait_until(lambda status: status["workers"][0]["job"] is not None)
        start_s = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start_s < 5
        running.join(10)
        assert answers[0].status_code == 503
        assert answers[0].json()["error"]["code"] == "shutting_down"


@pytest.mark.timed
def test_an_open_status_stream_does_not_hold_up_the_exit(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, *STUB) as server:
        server.wait_until_ready()
        with server.http.stream("GET", "/v1/status/stream") as events:
            lines = events.iter_lines()
            next(lines)
            start_s = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - start_s < 4


@pytest.mark.timed
def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, *STUB, environment=SLOW_STEPS) as server:
        server.wait_until_ready()
        running = threading.Thread(target=lambda: _ignore_errors(server))
        running.start()
        server.wait_until(lambda status: status["workers"][0]["job"] is not None)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_line("draining")
        start_s = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start_s < 4
        running.join(10)


def _ignore_errors(server: ServerProcess) -> None:
    try:
        server.generate(num_inference_steps=100, n=10)
    except httpx.HTTPError:
        return


@pytest.mark.timed
@pytest.mark.parametrize("phase", ["import", "idle"])
def test_no_worker_outlives_a_killed_front(phase: str, tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        _PHASES[phase](server)
        workers = server.worker_pids()
        assert workers
        server.process.kill()
        assert gone(workers, timeout_s=1.0)


def test_a_killed_worker_is_replaced_while_the_front_stays_up(tmp_path: Path) -> None:
    with ServerProcess(tmp_path) as server:
        server.wait_until_ready()
        answers: list[httpx.Response] = []
        running = threading.Thread(target=lambda: answers.append(server.generate(num_inference_steps=100)))
        running.start()
        server.wait_until(lambda status: status["workers"][0]["job"] is not None)
        (worker,) = server.worker_pids()
        os.kill(worker, signal.SIGKILL)
        server.wait_until(lambda status: status["status"] == "loading", 1)
        assert server.get("/livez").status_code == 200
        assert server.get("/readyz").status_code == 503
        running.join(60)
        assert answers[0].status_code == 200
        assert server.status()["workers"][0]["restarts"] == 1
        server.logged("worker 0: the worker died")
