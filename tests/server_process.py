"""Starts the real server as a user would, in a process of its own, and ends it again."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2 as httpx
import psutil

from tests.plain_http import open_client

ROOT = Path(__file__).parents[1]
READY_TIMEOUT_S = 90.0


class ServerProcess:
    """``python run.py`` on a free port. ``lines`` are what it logged so far; use it as a context manager."""

    def __init__(self, data_dir: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.lines: list[str] = []
        self.data_dir = data_dir
        self._news: queue.Queue[str | None] = queue.Queue()
        self.started_s = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "run.py", "--port", "0", "--data-dir", str(data_dir), *arguments],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=os.environ | (environment or {}),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.url = self.wait_for_line(r"listening on ([^\s\"]+)")[1]
            self.http = open_client(self.url)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(10)

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                self.lines.append(line.rstrip())
                self._news.put(line.rstrip())
        self._news.put(None)

    def wait_for_line(self, pattern: str, timeout_s: float = READY_TIMEOUT_S) -> re.Match[str]:
        """The first log line, from where the last call stopped, that matches."""
        end_s = time.monotonic() + timeout_s
        try:
            while (line := self._news.get(timeout=max(end_s - time.monotonic(), 0.01))) is not None:
                if found := re.search(pattern, line):
                    return found
        except queue.Empty:
            pass
        raise AssertionError(f"no line like {pattern!r}:\n" + "\n".join(self.lines))

    def logged(self, pattern: str, timeout_s: float = 10.0) -> str:
        """The last line so far that matches; waits for one, for a log reaches its reader later than an answer."""
        end_s = time.monotonic() + timeout_s
        while not (found := [line for line in list(self.lines) if re.search(pattern, line)]):
            assert time.monotonic() < end_s, f"no line like {pattern!r}:\n" + "\n".join(self.lines)
            time.sleep(0.01)
        return found[-1]

    def get(self, path: str) -> httpx.Response:
        return self.http.get(path)

    def post(self, path: str, body: Any = None) -> httpx.Response:
        return self.http.post(path, json=body)

    def generate(self, prompt: str = "a red circle on a blue background", **members: Any) -> httpx.Response:
        return self.post("/v1/images/generations", {"prompt": prompt, **members})

    def status(self) -> dict[str, Any]:
        body: dict[str, Any] = self.get("/v1/status").json()
        return body

    def wait_until(
        self, condition: Callable[[dict[str, Any]], bool], timeout_s: float = READY_TIMEOUT_S
    ) -> dict[str, Any]:
        """Polls ``/v1/status`` until the condition holds; the status that fulfilled it."""
        end_s = time.monotonic() + timeout_s
        while not condition(status := self.status()):
            assert time.monotonic() < end_s, f"still {status}\n" + "\n".join(self.lines)
            time.sleep(0.02)
        return status

    def wait_until_ready(self) -> None:
        self.wait_until(lambda status: status["status"] == "ready")

    def worker_pids(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 60) -> int:
        """Sends the signal and returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


def gone(pids: Sequence[int], timeout_s: float = 1.0) -> bool:
    """Whether all these processes end within the time; a zombie counts as gone."""
    end_s = time.monotonic() + timeout_s
    while any(_runs(pid) for pid in pids):
        if time.monotonic() > end_s:
            return False
        time.sleep(0.01)
    return True


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
