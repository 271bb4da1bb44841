"""SIGTERM in every situation, and again: R21-R27 of the reliability map."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

from tests.chaos.chaos_server import ChaosServer
from tests.chaos.conftest import Start

pytestmark = pytest.mark.timed


def _signal(server: ChaosServer, number: signal.Signals = signal.SIGTERM) -> float:
    server.process.send_signal(number)
    return time.monotonic()


def _exit_code(server: ChaosServer, within_s: float, since_s: float) -> int:
    code = server.process.wait(within_s + 5)
    assert time.monotonic() - since_s < within_s
    return code


@contextlib.contextmanager
def connected(server: ChaosServer, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    """So many clients that send this and then nothing."""
    url = urlsplit(server.url)
    with contextlib.ExitStack() as stack:
        socks = []
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection((url.hostname or "", url.port or 0)))
            sock.sendall(sent)
            socks.append(sock)
        yield socks


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_an_idle_server_ends_within_a_second(number: signal.Signals, start: Start) -> None:
    """R21: with exit code 0, where uvicorn alone has -15."""
    server = start()
    assert _exit_code(server, 1.0, _signal(server, number)) == 0
    server.lines.append("")


def test_a_running_job_is_finished_a_waiting_one_kept_and_new_ones_refused(start: Start) -> None:
    """R22"""
    server = start(step_s=0.05)
    answers: list[httpx.Response] = []
    body = {"prompt": "chaos", "seed": 1, "steps": 20}
    asking = threading.Thread(target=lambda: answers.append(server.post("/v1/images/generations", body)))
    asking.start()
    server.wait_until(lambda status: (status["workers"][0]["job"] or {"step": 0})["step"] >= 1)
    waiting = server.submit(steps=5)["id"]
    signalled_s = _signal(server)
    while server.get("/readyz").status_code == 200:
        assert time.monotonic() - signalled_s < 0.1
    assert server.get("/livez").status_code == 200
    refused = server.try_submit()
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert refused.headers["connection"] == "close"
    asking.join()
    assert answers[0].status_code == 200
    assert _exit_code(server, 1.0 + 2.0, signalled_s) == 0
    again = server.restart()
    shown = again.wait_for(waiting)
    assert (shown["status"], shown["attempt"]) == ("succeeded", 1)
    again.end()


def test_a_job_longer_than_the_grace_period_waits_for_the_next_server(start: Start) -> None:
    """R23: its client is told the job's id, and nothing counts against it."""
    server = start("--grace-period-s", "0.5", step_s=0.05)
    answers: list[httpx.Response] = []
    body = {"prompt": "chaos", "seed": 1, "steps": 100}
    asking = threading.Thread(target=lambda: answers.append(server.post("/v1/images/generations", body)))
    asking.start()
    server.wait_until(lambda status: (status["workers"][0]["job"] or {"step": 0})["step"] >= 1)
    name = server.status()["workers"][0]["job"]["id"]
    signalled_s = _signal(server)
    asking.join()
    assert _exit_code(server, 0.5 + 1.0, signalled_s) == 0
    assert answers[0].status_code == 503
    assert name in answers[0].json()["detail"]
    assert answers[0].headers["retry-after"]
    again = server.restart()
    assert again.wait_for_step(name)["attempt"] == 2
    assert again.wait_for(name)["status"] == "succeeded"
    again.end()


@pytest.mark.parametrize("phase", ["loading", "warming"])
def test_a_load_does_not_hold_up_the_end(phase: str, start: Start) -> None:
    """R24"""
    server = start(is_ready=False, STUB_LOAD_S="5" if phase == "loading" else "0.05", step_s=2.0)
    server.wait_until(lambda status: status["workers"][0]["state"] == phase)
    name = server.submit()["id"]
    assert _exit_code(server, 2.0, _signal(server)) == 0
    again = start()
    assert again.wait_for(name)["status"] == "succeeded"


def test_no_connection_holds_up_the_end(start: Start) -> None:
    """R25: a stream, half-open requests, clients that read nothing."""
    server = start("--grace-period-s", "1")
    name = server.submit(width=2048, height=2048, num_outputs=10, steps=1)["id"]
    server.wait_for(name)
    half = b"POST /v1/images/generations HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 99\r\n\r\n{"
    with (
        connected(server, 2, b"GET /v1/status/stream HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"),
        connected(server, 25, half),
        connected(server, 25, b"GET /livez HT"),
        connected(server, 25, f"GET /v1/predictions/{name}/output/0 HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()),
    ):
        assert _exit_code(server, 1.0 + 1.5, _signal(server)) == 0


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM)])
def test_a_second_signal_ends_it_within_two_seconds_and_loses_nothing(
    numbers: tuple[signal.Signals, ...], start: Start
) -> None:
    """R26, also with a worker that hangs."""
    server = start("--hang-timeout-s", "60", "--faults", "engine.step@3=hang", step_s=0.05)
    names = [server.submit(steps=10)["id"] for _ in range(3)]
    server.wait_for_step(names[0], 2)
    _signal(server, numbers[0])
    server.poll(lambda: server.get("/readyz").status_code == 503)
    assert server.process.poll() is None
    second_s = _signal(server, numbers[1])
    assert _exit_code(server, 2.0, second_s) == 0
    again = start()
    assert [again.wait_for(name)["status"] for name in names] == ["succeeded"] * 3


def test_a_storm_of_signals_is_one_drain(start: Start) -> None:
    """R27"""
    server = start(step_s=0.02)
    name = server.submit(steps=5)["id"]
    for number in (signal.SIGPIPE, signal.SIGCHLD, signal.SIGWINCH):
        server.process.send_signal(number)
    assert server.wait_for(name)["status"] == "succeeded"
    for _ in range(100):
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.process.pid, signal.SIGTERM)
    assert server.process.wait(5) == 0
    assert len([line for line in server.lines if "draining:" in line]) == 1


def test_the_port_stays_open_for_the_drain_delay(start: Start) -> None:
    """R22: a balancer needs a moment to notice."""
    server = start("--drain-delay-s", "1")
    signalled_s = _signal(server)
    answers: list[Any] = []
    while time.monotonic() - signalled_s < 0.8:
        answers.append((server.get("/livez").status_code, server.get("/readyz").status_code))
        time.sleep(0.05)
    assert set(answers) <= {(200, 503), (200, 200)} and answers[-1] == (200, 503)
    assert server.process.wait(5) == 0
    assert 1.0 <= time.monotonic() - signalled_s < 2.0
