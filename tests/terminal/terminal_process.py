"""A command on a real terminal: a pty whose other end is read by an emulator, so that tests see what a person sees."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2 as httpx
import psutil
import pyte

from safelight.config import STUB_MODEL

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 30.0
SAFELIGHT = (sys.executable, "-m", "safelight")
_HISTORY_LINES = 1000
_GRAPHICS = re.compile(r"\x1b[_P\]].*?(?:\x1b\\|\x07)", re.DOTALL)
"""APC, DCS and OSC sequences, in which pictures travel: the emulator knows none of them."""


class TerminalProcess:
    """Runs until the context manager ends. ``written`` is all that it wrote, escape sequences included."""

    def __init__(
        self, command: Sequence[str], columns: int = 80, rows: int = 24, pixels: tuple[int, int] = (0, 0), **env: str
    ) -> None:
        self.written = ""
        self.screen = pyte.HistoryScreen(columns, rows, history=_HISTORY_LINES)
        self._stream = pyte.Stream(self.screen)
        self._lock = threading.Lock()
        self._may_read = threading.Event()
        self._may_read.set()
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, *pixels))
        removed = (
            "NO_COLOR",
            "COLORTERM",
            "TMUX",
            "KITTY_WINDOW_ID",
            "TERM_PROGRAM",
            "LC_TERMINAL",
            "SAFELIGHT_API_KEY",
        )
        environment = {name: value for name, value in os.environ.items() if name not in removed}
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env=environment | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"} | env,
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.read_on()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(10)
        os.close(self._ours)

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        while True:
            self._may_read.wait()
            try:
                data = os.read(self._ours, 4096)
            except OSError:  # the last one on the other side is gone
                return
            with self._lock:
                self.written += decoder.decode(data)
                self._feed()

    _fed = 0

    def _feed(self) -> None:
        """All but a graphics sequence that is not whole yet."""
        new = self.written[self._fed :]
        start = max(new.rfind("\x1b_"), new.rfind("\x1bP"), new.rfind("\x1b]"))
        if start >= 0 and not _GRAPHICS.match(new, start):
            new = new[:start]
        if new.endswith("\x1b"):
            new = new[:-1]
        self._fed += len(new)
        self._stream.feed(_GRAPHICS.sub("", new))

    # --- what a person does -----------------------------------------------------------------------------------------

    def stop_reading(self) -> None:
        """As Ctrl-S does: what the program writes stays in the pty, until that is full."""
        self._may_read.clear()

    def read_on(self) -> None:
        self._may_read.set()

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        with self._lock:
            self.screen.resize(rows, columns)
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit code after the signal, once all that it wrote was read."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        code = self.process.wait(timeout_s)
        self.read_on()
        self._reader.join(10)
        return code

    # --- what a person sees -----------------------------------------------------------------------------------------

    @property
    def lines(self) -> list[str]:
        """The screen, without empty lines at its end."""
        with self._lock:
            lines = [line.rstrip() for line in self.screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def history(self) -> list[str]:
        """What has scrolled away."""
        with self._lock:
            columns = range(self.screen.columns)
            return ["".join(line[x].data for x in columns).rstrip() for line in self.screen.history.top]

    @property
    def is_cursor_visible(self) -> bool:
        with self._lock:
            return not self.screen.cursor.hidden

    def wait_for(self, pattern: str, timeout_s: float = TIMEOUT_S) -> re.Match[str]:
        """The first match on the screen, as soon as there is one."""
        found: re.Match[str] = self.poll(lambda: re.search(pattern, self.text, re.MULTILINE), timeout_s)
        return found

    def poll(self, condition: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
        end_s = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < end_s, f"timed out; the screen:\n{self.text}"
            time.sleep(0.01)
        return found


class TerminalServer(TerminalProcess):
    """``safelight serve`` with the stub engine."""

    def __init__(self, folder: Path, *options: str, step_s: float = 0.05, port: int = 0, **arguments: Any) -> None:
        command = (*SAFELIGHT, "serve", "--model", STUB_MODEL, "--port", str(port), "--data-dir", str(folder), *options)
        super().__init__(command, STUB_STEP_S=str(step_s), **arguments)
        self.url = self.poll(lambda: re.search(r"listening on (\S+)", self.written))[1]
        self.http = httpx.Client(base_url=self.url, timeout=TIMEOUT_S, trust_env=False)

    def __exit__(self, *error: Any) -> None:
        self.http.close()
        super().__exit__(*error)

    def submit(self, prompt: str = "a red circle", **members: Any) -> str:
        """The id of an accepted job."""
        answer = self.http.post("/v1/predictions", json={"input": {"prompt": prompt, "seed": 1} | members})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def wait_until_ready(self) -> None:
        self.poll(lambda: self.http.get("/readyz").status_code == 200)

    def worker_pids(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children()]
