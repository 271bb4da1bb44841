"""Lines at the bottom of the server's terminal, drawn by a thread so that nobody ever waits for that terminal.

A terminal may be stopped (Ctrl-S, a frozen window, a slow line), and who then writes to it blocks. So while this is
open, all that the process and its children write to stderr goes into a pipe. The thread empties it whatever the
terminal does, and prints it above the lines.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from safelight.terminal import LiveLines

Render = Callable[[int], Sequence[str]]
"""The lines for a terminal of so many columns; called on the thread."""

_MIN_INTERVAL_S = 0.25
_LOOK_AT_WIDTH_S = 1.0
_LAST_WORDS_S = 1.0
_READ_BYTES = 65536
_MAX_WAITING_BYTES = 250_000


class LiveTerminal:
    """Open it as a context manager. ``show`` says what the lines are from now on, and costs its caller next to nothing.

    Raises ``OSError`` where stderr is a terminal without a name.
    """

    def __init__(self, stderr_fd: int = 2) -> None:
        self._stderr_fd = stderr_fd
        self._encoding = sys.stderr.encoding
        # A description of its own: O_NONBLOCK would otherwise be set for the shell as well.
        self._tty_fd = os.open(os.ttyname(stderr_fd), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        self._saved_fd = os.dup(stderr_fd)
        self._pipe_fd, self._into_pipe_fd = os.pipe()
        self._wake_fd, self._waker_fd = os.pipe()
        for fd in (self._pipe_fd, self._wake_fd, self._waker_fd):
            os.set_blocking(fd, False)
        self._above = _Above()
        self._live = LiveLines()
        self._render: Render = lambda columns: ()
        self._output = b""
        self._next_draw_s = 0.0
        self._end_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="terminal", daemon=True)

    def __enter__(self) -> Self:
        sys.stderr.flush()
        os.dup2(self._into_pipe_fd, self._stderr_fd)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives stderr back, prints what is left and takes the lines away; a stopped terminal gets one second."""
        sys.stderr.flush()
        os.dup2(self._saved_fd, self._stderr_fd)
        self._end_s = time.monotonic() + _LAST_WORDS_S
        self._wake()
        self._thread.join()
        for fd in (self._tty_fd, self._saved_fd, self._pipe_fd, self._into_pipe_fd, self._wake_fd, self._waker_fd):
            os.close(fd)

    def show(self, render: Render) -> None:
        """Draws these lines soon, and again when the terminal gets another width."""
        self._render = render
        self._wake()

    def _wake(self) -> None:
        _write(self._waker_fd, b"\0")

    # --- on the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._is_over:
                self._turn()
        except Exception:  # a pipe that nobody empties would stop the server
            os.dup2(self._saved_fd, self._stderr_fd)
            traceback.print_exc()

    @property
    def _is_over(self) -> bool:
        if self._end_s is None:
            return False
        return time.monotonic() > self._end_s or not (self._output or self._above or self._live.shown)

    def _turn(self) -> None:
        patience_s = self._next_draw_s - time.monotonic()
        if self._end_s is not None:
            patience_s = _MIN_INTERVAL_S if self._output else 0.0
        elif patience_s <= 0:
            patience_s = _LOOK_AT_WIDTH_S
        select.select([self._pipe_fd, self._wake_fd], [self._tty_fd] if self._output else [], [], patience_s)
        _read(self._wake_fd)
        self._above.feed(_read(self._pipe_fd))
        if not self._output:
            self._output = self._compose(is_last=self._end_s is not None)
        self._output = self._output[_write(self._tty_fd, self._output) :]

    def _compose(self, *, is_last: bool) -> bytes:
        """What to write now: text as it comes, lines only if they changed and a quarter of a second is over."""
        above = self._above.take(is_last=is_last).decode(self._encoding, "replace")
        lines = () if is_last or _is_in_background(self._tty_fd) else self._render(_columns(self._tty_fd))
        has_changed = list(lines) != list(self._live.shown) and (is_last or time.monotonic() >= self._next_draw_s)
        if not (above or has_changed):
            return b""
        self._next_draw_s = time.monotonic() + _MIN_INTERVAL_S
        return self._live.draw(lines, above).encode(self._encoding, "replace")


class _Above:
    """What was written to stderr and is not printed yet; whole lines only, and not without bound."""

    def __init__(self) -> None:
        self._waiting = b""
        self._lost_lines = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def feed(self, written: bytes) -> None:
        if len(self._waiting) + len(written) <= _MAX_WAITING_BYTES:
            self._waiting += written
        else:
            self._lost_lines += written.count(b"\n")

    def take(self, *, is_last: bool) -> bytes:
        whole, newline, self._waiting = self._waiting.rpartition(b"\n")
        taken = whole + newline
        if is_last and self._waiting:
            taken, self._waiting = taken + self._waiting + b"\n", b""
        if self._lost_lines:
            taken += f"({self._lost_lines} lines were lost while this terminal was stopped)\n".encode()
            self._lost_lines = 0
        return taken


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return b""


def _write(fd: int, data: bytes) -> int:
    """How much of it is gone: all, if the terminal is."""
    try:
        return os.write(fd, data) if data else 0
    except BlockingIOError:
        return 0
    except OSError:
        return len(data)


def _columns(tty_fd: int) -> int:
    return os.get_terminal_size(tty_fd).columns or 80


def _is_in_background(tty_fd: int) -> bool:
    """Another command has the terminal: lines at its bottom would be drawn over what that one shows."""
    try:
        return os.tcgetpgrp(tty_fd) != os.getpgrp()
    except OSError:  # not our controlling terminal
        return False
