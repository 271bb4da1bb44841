"""From process start to the first picture: what answers when."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.server_process import ROOT, ServerProcess


def test_health_answers_and_readiness_tells_progress_while_the_model_loads(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with ServerProcess(tmp_path, "--model", str(tiny_checkpoint)) as server:
        assert server.get("/livez").status_code == 200
        answer = server.get("/readyz")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert answer.json()["status"] == "loading"
        assert answer.json()["workers"][0]["phase"] in ("starting", "import")
        assert server.get("/startupz").status_code == 503
        server.wait_until_ready()
        for path in ("/livez", "/health", "/ping", "/v2/health/live", "/readyz", "/v2/health/ready", "/startupz"):
            assert server.get(path).status_code == 200, path


def test_every_phase_and_byte_of_a_load_is_seen_in_the_stream(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--model", str(tiny_checkpoint)) as server:
        seen = []
        with server.http.stream("GET", "/v1/status/stream") as events:
            assert events.headers["content-type"].startswith("text/event-stream")
            for line in events.iter_lines():
                if line.startswith("data: "):
                    seen.append(json.loads(line.removeprefix("data: ")))
                    if seen[-1]["status"] == "ready":
                        break
        workers = [status["workers"][0] for status in seen]
        total = sum(_weight_bytes(path) for path in tiny_checkpoint.rglob("*.safetensors"))
        done = [worker["bytes_done"] for worker in workers]
        assert done == sorted(done)
        assert (done[-1], workers[-1]["bytes_total"]) == (total, total)
        assert workers[-1]["components_done"] == workers[-1]["components_total"] == 7
        assert [status["status"] for status in seen][-1] == "ready"
        assert set(workers[-1]["phase_seconds"]) == {"import", "weights", "to_device", "warmup"}
        server.logged("ready on cpu in")
        log = "\n".join(server.lines)
        for phase in ("import", "warmup 7/7"):  # what a small model does between them may be over before a line is due
            assert f"cpu {phase}" in log


def _weight_bytes(path: Path) -> int:
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    return path.stat().st_size - 8 - header_bytes


def test_a_second_start_knows_how_long_the_load_will_take(tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("--model", str(tiny_checkpoint))
    with ServerProcess(tmp_path, *arguments) as server:
        server.wait_until_ready()
        server.wait_until(lambda _: (tmp_path / "load-history.json").exists(), 5)
    with ServerProcess(tmp_path, *arguments) as server:
        server.wait_until(lambda status: (status["workers"][0]["eta_s"] or 0) > 0.5, 5)


def test_requests_made_while_the_model_loads_are_answered(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--model", str(tiny_checkpoint)) as server:
        answers: list[httpx.Response] = []
        threads = [
            threading.Thread(target=lambda: answers.append(server.generate(size="256x256", steps=1))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        server.wait_until(lambda status: status["queue"]["waiting"] == 3)
        assert server.status()["status"] == "loading"
        for thread in threads:
            thread.join(60)
        assert [answer.status_code for answer in answers] == [200, 200, 200]


@pytest.mark.timed
def test_a_port_in_use_is_one_line_in_under_a_second(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        start_s = time.monotonic()
        run = subprocess.run(
            [sys.executable, "run.py", "--port", str(port), "--data-dir", str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
        )
        seconds = time.monotonic() - start_s
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1 and str(port) in run.stderr
    assert seconds < 1.0


def test_a_wrong_setting_is_one_line_with_exit_code_2(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "run.py", "--queue-limit", "many", "--data-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert run.returncode == 2
    assert run.stderr == "safelight: --queue-limit='many' is not a whole number from 1 to 100000\n"


def test_a_terminal_shows_bars_while_the_model_loads(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    arguments = ["--port", "0", "--data-dir", str(tmp_path), "--model", str(tiny_checkpoint)]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"}
    with subprocess.Popen([sys.executable, "run.py", *arguments], cwd=ROOT, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while b"ready on cpu" not in shown:
            shown += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    os.close(ours)
    assert "\u2501".encode() in shown  # a bar
    assert re.search(rb"cpu (import|weights|to_device|warmup)", shown)  # a small model loads between two lines
    assert re.search(rb"\d+% \xc2\xb7 [\d.]+ of [\d.]+ [kM]B", shown)
