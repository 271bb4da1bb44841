"""``safelight top``: a server's workers, jobs, queue and errors, live."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from types import FrameType, TracebackType
from typing import Self

from safelight.client import DEFAULT_URL, find_server
from safelight.commands.overview import overview
from safelight.commands.server_feed import ServerFeed, look_once
from safelight.terminal import is_capable, look_of

_ENTER, _LEAVE = b"\x1b[?1049h\x1b[?25l", b"\x1b[?25h\x1b[?1049l"
_PIPE_COLUMNS = 160
_MIN_INTERVAL_S = 0.1
_CLOCK_S = 1.0
_QUIT_KEYS = b"qQ"


def top(args: argparse.Namespace) -> int:
    """Shows the state until q or Ctrl-C; once, if asked or if there is no terminal."""
    url = args.url or DEFAULT_URL
    client = find_server(url, args.api_key)
    if args.once or not is_capable(sys.stdout):
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE_COLUMNS
        print("\n".join(overview(look_once(client), url, columns, look_of(sys.stdout))))
        return 0
    wake_fd, waker_fd = os.pipe()
    os.set_blocking(wake_fd, False)
    os.set_blocking(waker_fd, False)
    feed = ServerFeed(client, lambda: _wake(waker_fd))
    feed.start()
    with _WholeScreen() as screen, contextlib.suppress(KeyboardInterrupt):
        _watch(feed, url, screen, wake_fd)
    if feed.view.refusal:
        raise feed.view.refusal
    return 0


def _watch(feed: ServerFeed, url: str, screen: _WholeScreen, wake_fd: int) -> None:
    """Draws until a key says to stop, or the server does."""
    look, shown = look_of(sys.stdout), None
    stdin = [sys.stdin.fileno()] if sys.stdin.isatty() else []
    while feed.view.refusal is None:
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
        lines = overview(feed.view, url, columns - 1, look)[: rows - 2]
        lines += [""] * (rows - 1 - len(lines)) + [look.styled("q quits", "2")]
        if lines != shown or screen.is_new:
            shown, screen.is_new = lines, False
            sys.stdout.write("\x1b[H" + "\r\n".join(f"{line}\x1b[K" for line in lines))
            sys.stdout.flush()
        readable = select.select([wake_fd, *stdin], [], [], _CLOCK_S)[0]
        if stdin and stdin[0] in readable and _is_quit(os.read(stdin[0], 64)):
            return
        if wake_fd in readable:
            time.sleep(_MIN_INTERVAL_S)
            os.read(wake_fd, 4096)


def _is_quit(keys: bytes) -> bool:
    """Also when the terminal has gone."""
    return not keys or any(key in _QUIT_KEYS for key in keys)


def _wake(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.write(fd, b"\0")


class _WholeScreen:
    """The terminal's other screen, without a cursor; keys come at once. Given back as it was, however this ends."""

    def __init__(self) -> None:
        self.is_new = True
        self._keys_fd = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._modes = None if self._keys_fd is None else termios.tcgetattr(self._keys_fd)

    def __enter__(self) -> Self:
        signal.signal(signal.SIGTERM, _end)
        signal.signal(signal.SIGTSTP, self._stop)
        self._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _take(self) -> None:
        if self._keys_fd is not None:
            tty.setcbreak(self._keys_fd, termios.TCSANOW)
        os.write(sys.stdout.fileno(), _ENTER)
        self.is_new = True

    def _give_back(self) -> None:
        os.write(sys.stdout.fileno(), _LEAVE)
        if self._keys_fd is not None and self._modes is not None:
            termios.tcsetattr(self._keys_fd, termios.TCSANOW, self._modes)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z. What follows the signal happens when the shell lets us go on."""
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
