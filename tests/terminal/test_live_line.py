"""The server's own terminal, as a person sees it: bars, one quiet line, the log above it; nobody waits for it."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.terminal.terminal_process import TerminalServer

LIVE = re.compile(r"^ (loading|warming|ready|degraded|draining|failed)\b", re.MULTILINE)
LOGGED = re.compile(r"^\d{4}-\d\d-\d\d ")
COLOUR = "\x1b[3"


def test_a_load_is_a_bar_and_then_one_line_is_left(tmp_path: Path) -> None:
    with TerminalServer(tmp_path, STUB_LOAD_S="1.5") as server:
        shown = server.wait_for(r"^ cpu weights (\w+) \d/7 · (━+)╸?(─+) +(\d+)% · ([\d.]+) of 7\.0 MB")
        assert int(shown[4]) > 0
        server.wait_for(r"^ ready · idle$")
        assert "cpu weights" not in server.text
        assert server.lines[-1] == " ready · idle"
        assert COLOUR in server.written


def test_steps_move_in_place_and_the_log_stays_above_them(tmp_path: Path) -> None:
    with TerminalServer(tmp_path, step_s=0.2, rows=12) as server:
        server.wait_for("ready · idle")
        server.submit(num_inference_steps=8)
        server.submit(num_inference_steps=8, width=512)
        server.wait_for(r"^ ready · [━╸─]+ +\d/8 · 1 waiting$")
        os.kill(server.worker_pids()[0], signal.SIGUSR1)  # which makes the worker write to the same terminal
        for step in ("[3-8]", "[5-8]", "[78]"):  # not each is drawn
            server.wait_for(rf"^ ready · [━╸─]+ +{step}/8")
        server.wait_for("ready · idle · [0-9.]+ images/min")
        assert len(LIVE.findall(server.text)) == 1
        assert LIVE.match(server.lines[-1])
        above = server.history + server.lines[:-1]
        assert not [line for line in above if LIVE.match(line) or "━" in line]
        assert [line for line in above if line.startswith('  File "')]
        assert [line for line in above if LOGGED.match(line)]


@pytest.mark.timed
def test_nothing_is_written_while_nothing_changes(tmp_path: Path) -> None:
    with TerminalServer(tmp_path) as server:
        server.wait_for("ready · idle")
        time.sleep(0.5)
        before = server.written
        for _ in range(20):
            assert server.http.get("/v1/status").status_code == 200
        time.sleep(1.5)
        assert server.written == before


@pytest.mark.timed
def test_fast_steps_are_drawn_four_times_a_second_at_most(tmp_path: Path) -> None:
    with TerminalServer(tmp_path, step_s=0.01) as server:
        server.wait_for("ready · idle")
        before, start_s = len(server.written), time.monotonic()
        server.submit(num_inference_steps=200)
        server.wait_for(r"\d+/200")
        server.wait_for("images/min")
        seconds = time.monotonic() - start_s
        drawn = server.written[before:].count("\x1b[J")
        assert 2 < drawn <= 4 * seconds + 2


def test_a_narrow_terminal_wraps_nothing(tmp_path: Path) -> None:
    with TerminalServer(tmp_path, step_s=0.1, columns=40, rows=40, STUB_LOAD_S="1") as server:
        server.wait_for("^ cpu weights")
        server.wait_for("^ ready")
        for width in (256, 512, 768):
            server.submit(num_inference_steps=5, width=width)
        server.wait_for(r"^ ready ·")
        server.wait_for(r"^ ready · idle")
        above = server.history + server.lines[:-1]
        start = next(number for number, line in enumerate(above) if LOGGED.match(line))
        wrapped = [line for line in above[start:] if not LOGGED.match(line) and ("━" in line or LIVE.match(line))]
        assert not wrapped and len(LIVE.findall(server.text)) == 1


def test_a_terminal_that_gets_narrower_keeps_one_line(tmp_path: Path) -> None:
    with TerminalServer(tmp_path, columns=100) as server:
        server.submit()
        server.wait_for("ready · idle · [0-9.]+ images/min$")
        server.resize(20, 24)
        server.wait_for("^ ready · idle$")
        assert len(LIVE.findall(server.text)) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_shows_and_ends_on_a_clean_line(tmp_path: Path, number: signal.Signals) -> None:
    with TerminalServer(tmp_path, step_s=0.15) as server:
        server.wait_for("ready · idle")
        server.submit(num_inference_steps=10)
        server.submit(num_inference_steps=10, width=512)
        server.wait_for("[2-9]/10 · 1 waiting")
        if number is signal.SIGINT:
            server.type("\x03")
        else:
            server.process.send_signal(number)
        server.wait_for(r"^ draining · [━╸─]+ +\d+/10 · 1 kept")
        assert server.wait() == 0
        assert server.lines[-1].endswith("INFO stopped")
        assert not LIVE.search(server.text)
        assert server.is_cursor_visible and server.screen.cursor.x == 0


def test_a_killed_server_leaves_a_visible_cursor(tmp_path: Path) -> None:
    with TerminalServer(tmp_path) as server:
        server.wait_for("ready · idle")
        server.end(signal.SIGKILL)
        assert server.is_cursor_visible


def test_a_restarting_worker_shows(tmp_path: Path) -> None:
    with TerminalServer(tmp_path, STUB_LOAD_S="1") as server:
        server.wait_for("ready · idle")
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        server.wait_for(r"^ cpu (restarting|starting|weights)")
        server.wait_for("ready · idle")


@pytest.mark.timed
def test_a_stopped_terminal_stops_nothing_but_itself(tmp_path: Path) -> None:
    with TerminalServer(tmp_path, "--log-prompts", "true", step_s=0.001) as server:
        server.wait_for("ready · idle")
        server.stop_reading()
        slowest_s = 0.0
        for number in range(50):
            server.submit(f"{number} " + "x" * 10_000, num_inference_steps=1)  # 500 KB of log, into a pty of a few KB
            start_s = time.monotonic()
            assert server.http.get("/livez").status_code == 200
            slowest_s = max(slowest_s, time.monotonic() - start_s)
        assert slowest_s < 0.5
        server.read_on()
        server.wait_for(r"\(\d+ lines were lost while this terminal was stopped\)")
        server.wait_for("^ ready · ")


def test_a_server_whose_terminal_is_stopped_can_be_ended(tmp_path: Path) -> None:
    with TerminalServer(tmp_path, "--log-prompts", "true") as server:
        server.wait_for("ready · idle")
        server.stop_reading()
        server.submit("x" * 30_000, num_inference_steps=1)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path) -> None:
    with TerminalServer(tmp_path, TERM="dumb", STUB_LOAD_S="0.5") as server:
        server.wait_for("INFO worker 0: cpu weights")
        server.wait_for("INFO worker 0 ready")
        assert "\x1b" not in server.written
        assert not LIVE.search(server.text)


def test_a_terminal_without_unicode_gets_ascii(tmp_path: Path) -> None:
    with TerminalServer(tmp_path, "--log-prompts", "true", PYTHONIOENCODING="ascii", STUB_LOAD_S="2") as server:
        server.wait_for(r"^ cpu weights \w+ \d/7 \| #*-+ +\d+% \|")
        server.wait_for(r"^ ready \| idle$")
        server.submit("写真")
        server.wait_for("images/min$")
        assert server.written.isascii()


def test_no_color_is_kept_to(tmp_path: Path) -> None:
    with TerminalServer(tmp_path, NO_COLOR="1", STUB_LOAD_S="0.5") as server:
        server.wait_for("ready · idle")
        assert COLOUR not in server.written
