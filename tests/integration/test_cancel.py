"""A client that leaves takes its job along, within one denoising step."""

from __future__ import annotations

import json
import socket
import threading
import time
from urllib.parse import urlsplit

from tests.server_process import ServerProcess

_LONG = {"prompt": "a red circle on a blue background", "num_inference_steps": 100, "n": 10, "size": "512x512"}


def _send(server: ServerProcess, body: dict[str, object]) -> socket.socket:
    url = urlsplit(server.url)
    content = json.dumps(body).encode()
    sock = socket.create_connection((url.hostname or "", url.port or 0))
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return sock


def test_a_client_that_leaves_stops_its_running_job_within_one_step(server: ServerProcess) -> None:
    with _send(server, _LONG):
        status = server.wait_until(lambda status: (status["workers"][0]["job"] or {"step": 0})["step"] >= 3)
        job = status["workers"][0]["job"]
    step_when_left = server.status()["workers"][0]["job"] or job
    server.wait_until(lambda status: status["workers"][0]["job"] is None, 5)
    line = server.logged(f"{job['id']}.*cancelled")
    steps = int(line.split("after ")[1].split()[0])
    # One step was under way when the connection closed; two may have begun before the status and the cancel arrived.
    assert steps <= step_when_left["step"] + 3
    assert server.generate(steps=1).status_code == 200


def test_a_client_that_leaves_the_queue_leaves_no_job_behind(server: ServerProcess) -> None:
    with _send(server, _LONG):
        server.wait_until(lambda status: status["workers"][0]["job"] is not None)
        with _send(server, _LONG):
            server.wait_until(lambda status: status["queue"]["waiting"] == 1)
        server.wait_until(lambda status: status["queue"]["waiting"] == 0, 2)
    server.wait_until(lambda status: status["workers"][0]["job"] is None, 5)


def test_the_next_job_starts_right_after_a_cancelled_one(server: ServerProcess) -> None:
    with _send(server, _LONG):
        server.wait_until(lambda status: status["workers"][0]["job"] is not None)
        answers: list[int] = []
        waiting = threading.Thread(target=lambda: answers.append(server.generate(steps=1).status_code))
        waiting.start()
        server.wait_until(lambda status: status["queue"]["waiting"] == 1)
        left_s = time.monotonic()
    waiting.join(30)
    assert answers == [200]
    assert time.monotonic() - left_s < 3
