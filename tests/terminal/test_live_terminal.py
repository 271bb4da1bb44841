"""The thread behind the live line, alone: its own defects, other commands' terminals, and who else writes to stderr."""

from __future__ import annotations

import sys

from tests.terminal.terminal_process import TerminalProcess

START = """
import os, subprocess, sys, time
from safelight.server.live_terminal import LiveTerminal
"""


def run(program: str) -> TerminalProcess:
    return TerminalProcess((sys.executable, "-c", START + program))


def test_what_children_write_and_half_lines_go_above_the_lines() -> None:
    program = """
with LiveTerminal() as terminal:
    terminal.show(lambda columns: [f" live of {columns}"])
    subprocess.run(["sh", "-c", "echo child >&2; printf half >&2"])
    time.sleep(1)
"""
    with run(program) as process:
        process.wait_for("^child\n live of 80$")
        assert process.wait() == 0
        assert process.lines == ["child", "half"]


def test_a_defect_of_the_drawing_gives_stderr_back() -> None:
    program = """
with LiveTerminal() as terminal:
    terminal.show(lambda columns: 1 / 0)
    time.sleep(0.5)
    print("x" * 100_000, file=sys.stderr)
    print("still there", file=sys.stderr)
print("at the end", file=sys.stderr)
"""
    with run(program) as process:
        assert process.wait() == 0
        assert "ZeroDivisionError" in process.written and "still there" in process.text
        assert process.lines[-1] == "at the end"


def test_in_the_background_nothing_is_drawn_over_another_command() -> None:
    program = """
os.setpgid(0, 0) if os.fork() == 0 else os.wait() and sys.exit()
with LiveTerminal() as terminal:
    terminal.show(lambda columns: [" live"])
    time.sleep(0.5)
    print("a line of the log", file=sys.stderr)
    time.sleep(0.5)
"""
    with run(program) as process:
        assert process.wait() == 0
        assert process.lines == ["a line of the log"]
        assert "live" not in process.written


def test_an_error_leaves_its_traceback_below_and_no_line() -> None:
    program = """
with LiveTerminal() as terminal:
    terminal.show(lambda columns: [" live"])
    time.sleep(0.5)
    raise RuntimeError("a defect")
"""
    with run(program) as process:
        assert process.wait() == 1
        assert process.lines[-1] == "RuntimeError: a defect"
        assert " live" in process.written and " live" not in process.lines
