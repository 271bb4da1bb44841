"""Processes that the benchmarks start and always end, and the log lines by which they tell what they do."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO

import psutil

ROOT = Path(__file__).parents[1]
_EXIT_GRACE_S = 15.0
_POLL_S = 0.05

_MARK = re.compile(r"^MARK (?P<time>[\d.]+) (?P<phase>\w+)$", re.MULTILINE)
_OUR_PHASE = re.compile(
    r"^(?P<time>[\d-]+ [\d:]+,\d+) INFO worker 0(?:: \S+ (?P<phase>import|weights|warmup)\b| (?P<ready>ready) on)",
    re.MULTILINE,
)
_OUR_NAMES = {"weights": "load"}


class ProcessEnded(Exception):
    """A process ended, or did not say what was awaited in time; the message holds the end of its log."""


@contextlib.contextmanager
def running(
    command: Sequence[str], log: Path, stdin: int | IO[str] = subprocess.DEVNULL, stdout: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """``python COMMAND`` in the repository's root, its output in ``log``; at the end it and its children are gone.

    It gets a session of its own: Ctrl-C is for the benchmark, which then ends it in order.
    """
    with (
        log.open("w") as stream,
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            stdin=stdin,
            stdout=stream if stdout is None else stdout,
            stderr=stream,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[str]) -> None:
    """SIGTERM and patience, then SIGKILL; to what it started as well. Does nothing to a process that has ended."""
    if process.poll() is not None:
        return
    children = psutil.Process(process.pid).children(recursive=True)
    try:
        process.send_signal(signal.SIGTERM)
        process.wait(_EXIT_GRACE_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        for left in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        process.kill()
        process.wait()


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the benchmark as Ctrl-C does: through every ``finally``."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on right now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


def marks(log: Path) -> dict[str, float]:
    """When ``import``, ``load``, ``warmup`` and ``ready`` began, in seconds since the epoch, as far as the log says."""
    text = log.read_text(errors="replace")
    found: dict[str, float] = {match["phase"]: float(match["time"]) for match in _MARK.finditer(text)}
    for match in _OUR_PHASE.finditer(text):
        phase = match["ready"] or _OUR_NAMES.get(match["phase"], match["phase"])
        found.setdefault(phase, datetime.strptime(match["time"], "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp())
    return found


def wait_for_mark(process: subprocess.Popen[str], log: Path, phase: str, timeout_s: float) -> None:
    """Watches the log, which costs the server nothing. Raises ``ProcessEnded``."""
    end_s = time.monotonic() + timeout_s
    while phase not in marks(log):
        if process.poll() is not None or time.monotonic() > end_s:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise ProcessEnded(f"no {phase!r} after {timeout_s:.0f} s or exit code {process.poll()}:\n{tail}")
        time.sleep(_POLL_S)
