"""``safelight top`` on a terminal, against a server that works, fails, dies and comes back."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from safelight.commands.overview import overview
from safelight.commands.server_feed import View
from safelight.terminal import Look, cells
from tests.chaos.chaos_server import ChaosServer
from tests.terminal.terminal_process import ROOT, SAFELIGHT, TerminalProcess

ENTERED, LEFT, HIDDEN, SHOWN = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25l", "\x1b[?25h"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosServer]:
    """Tests must not end it."""
    with ChaosServer(tmp_path_factory.mktemp("data"), step_s=0.05) as server:
        server.wait_until_ready()
        yield server
        assert server.stop() == 0


class Top(TerminalProcess):
    """``safelight top`` on a terminal."""

    def __init__(self, server: ChaosServer, *options: str, **arguments: Any) -> None:
        super().__init__((*SAFELIGHT, "top", "--url", server.url, *options), **arguments)

    def has_given_back(self) -> bool:
        """The screen, the cursor and the keys are as they were."""
        modes = termios.tcgetattr(self._ours)[3]
        is_clean = self.written.rindex(LEFT) > self.written.rindex(ENTERED)
        return is_clean and self.is_cursor_visible and bool(modes & termios.ECHO) and bool(modes & termios.ICANON)


def test_jobs_move_wait_and_fail_before_ones_eyes(server: ChaosServer) -> None:
    with Top(server, columns=100) as top:
        top.wait_for("^safelight .* · ready · safelight/stub · up")
        top.wait_for("^worker 0 cpu · ready$")
        server.wait_for(server.submit(steps=1, prompt="out of memory")["id"])
        top.wait_for(r"^\d\d:\d\d:\d\d job_\w{8} · out_of_memory: ")
        running = server.submit(steps=100, prompt="a red circle")["id"]
        waiting = server.submit(steps=100, prompt="a blue square", width=512)["id"]
        top.wait_for(r"^worker 0 cpu · busy\n +━+╸?─* +\d+/100 · job_\w{8} · a red circle$")
        top.wait_for(r"^waiting\n +job_\w{8} · next · .*a blue square$")
        top.wait_for(r"^queue +[━╸─]+ 1 of \d+ waiting · 1 running$")
        for name in (waiting, running):
            server.post(f"/v1/predictions/{name}/cancel")
        top.wait_for("^worker 0 cpu · ready$")
        top.type("q")
        assert top.wait() == 0
        assert not top.history


def test_what_dies_is_missed_and_what_comes_back_is_found(tmp_path: Path) -> None:
    with ChaosServer(tmp_path) as server, Top(server, columns=120) as top:
        top.wait_for("^worker 0 cpu · ready$")
        os.kill(server.worker_pid(), signal.SIGKILL)
        top.wait_for("^worker 0 cpu · .*1 restart")
        top.wait_for("^worker 0 cpu · ready · 1 restart$")
        server.kill()
        top.wait_for("^the server does not answer; trying again · http")
        with server.restart() as next_server:
            top.wait_for("^worker 0 cpu · ready$")
            assert "trying again" not in top.text
            next_server.stop()
            top.wait_for("^the server (has stopped|does not answer)")


@pytest.mark.parametrize("how", ["q", "\x03", signal.SIGTERM])
def test_the_terminal_is_given_back_however_it_ends(server: ChaosServer, how: str | signal.Signals) -> None:
    with Top(server) as top:
        top.wait_for("^worker 0 cpu · ready")
        assert not top.is_cursor_visible and ENTERED in top.written
        if isinstance(how, str):
            top.type(how)
        else:
            top.process.send_signal(how)
        assert top.wait() == (0 if isinstance(how, str) else 128 + how)
        assert top.has_given_back()


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(server: ChaosServer) -> None:
    with Top(server) as top:
        top.wait_for("^worker 0 cpu · ready")
        top.type("\x1a")
        top.poll(lambda: psutil.Process(top.process.pid).status() == psutil.STATUS_STOPPED)
        top.poll(lambda: LEFT in top.written)
        assert top.has_given_back()
        before = len(top.written)
        top.process.send_signal(signal.SIGCONT)
        top.poll(lambda: "worker 0 cpu" in re.sub(r"\x1b\[[\d;]*m", "", top.written[before:]))
        assert not top.is_cursor_visible
        top.type("q")
        assert top.wait() == 0


def test_nothing_is_drawn_but_what_changed(server: ChaosServer) -> None:
    with Top(server, columns=60, rows=8) as top:
        top.wait_for("^worker 0 cpu · ready")
        top.wait_for("^q quits$")
        assert len(top.lines) == 8
        assert not top.history


def test_a_wrong_key_ends_it_with_the_servers_sentence(tmp_path: Path) -> None:
    with ChaosServer(tmp_path / "data", SAFELIGHT_API_KEYS="me=secret-key") as server, Top(server) as top:
        assert top.wait() == 1
        assert "safelight: " in top.text and "API key" in top.text
        assert top.is_cursor_visible


def test_once_and_without_a_terminal_it_is_one_frame(server: ChaosServer) -> None:
    for options in (["--once"], []):
        command = [*SAFELIGHT, "top", "--url", server.url, *options]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stderr
        assert "worker 0 cpu · ready\n" in run.stdout and "\x1b" not in run.stdout


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    command = [*SAFELIGHT, "top", "--url", "http://127.0.0.1:9"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert run.stderr == "safelight: no Safelight server answers at http://127.0.0.1:9\n"


@pytest.mark.parametrize("columns", range(10, 120, 7))
def test_no_line_is_wider_than_asked(columns: int) -> None:
    worker = {
        **{"id": 0, "device": "cuda:0", "state": "loading", "phase": "weights", "component": "transformer"},
        **{"components_done": 5, "components_total": 7, "bytes_done": 5, "bytes_total": 7, "eta_s": 70.0},
        **{"error": "it was killed " * 9, "restarts": 3},
        "jobs": [{"id": "job_" + "1" * 32, "request_id": "r", "step": 3, "total_steps": 28}],
        "model": "a/model",
    }
    coming = worker | {"model": "another/model " * 9, "error": None}
    model = {
        "id": "写真" * 20,
        "state": "failed",
        "loaded_on": ["cuda:0"],
        "pinned": True,
        "waiting": 3,
        "error": "a" * 99,
    }
    status = {
        **{"status": "degraded", "version": "1.0", "uptime_s": 5000.0, "model": "a/model", "images_per_min": 3.0},
        **{
            "queue": {"waiting": 3, "running": 1, "limit": 64},
            "storage": {"error": "no space"},
            "workers": [worker | {"coming": coming}],
        },
        "models": [model, model],
    }
    job = {
        **{"id": "job_" + "1" * 32, "status": "failed", "params": {"prompt": "写真 " * 40}, "eta_s": 3.0},
        **{"error": "a sentence " * 20, "error_code": "out_of_memory", "completed_at": "2026-01-01T00:00:00.000Z"},
        "queue_position": None,
    }
    waiting = job | {"status": "starting", "queue_position": 0}
    view = View(status, 0.0, [job, *[waiting] * 7], trouble="the server does not answer")
    for line in overview(view, "http://127.0.0.1:8000", columns, Look()):
        assert cells(line) <= max(columns, 26), line
