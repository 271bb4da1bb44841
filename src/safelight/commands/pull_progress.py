"""What ``safelight pull`` shows meanwhile, on stderr: bars on a terminal, else a line for each file that is there."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from safelight.status_text import duration_text
from safelight.terminal import LiveLines, Piece, fitted, is_capable, look_of, printable

_BAR_CELLS = 32
_MIN_INTERVAL_S = 0.1
_NEWS_INTERVAL_S = 30.0
_MAX_BARS = 8


def size_text(size_bytes: float) -> str:
    """In the unit that fits: ``12.3 MB``."""
    unit_bytes, unit = next(
        (found for found in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size_bytes >= found[0]), (1, "bytes")
    )
    return f"{size_bytes / unit_bytes:.1f} {unit}" if unit_bytes > 1 else f"{size_bytes:.0f} bytes"


class PullProgress:
    """Open it as a context manager; its methods may be called from any thread."""

    def __init__(self) -> None:
        self._stream = sys.stderr
        self._is_live = is_capable(self._stream)
        self._look = look_of(self._stream)
        self._live = LiveLines()
        self._lock = threading.Lock()
        self._file_bytes: dict[str, int] = {}
        self._done_bytes: dict[str, int] = {}
        self._active: dict[str, None] = {}
        self._finished: set[str] = set()
        self._begun_s = time.monotonic()
        self._begun_bytes = 0
        self._drawn_s = self._told_s = self._begun_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._is_live:
                self._write(self._live.draw([]))

    def planned(self, file_bytes: Mapping[str, int], there_bytes: Mapping[str, int]) -> None:
        """See ``safelight.hub.pull.Progress``."""
        with self._lock:
            self._file_bytes, self._done_bytes = dict(file_bytes), dict(there_bytes)
            self._finished = {name for name, size in there_bytes.items() if size == file_bytes[name]}
            self._begun_bytes = sum(there_bytes.values())
            there = f", {size_text(self._begun_bytes)} there" if self._begun_bytes else ""
            left_bytes = sum(file_bytes.values()) - self._begun_bytes
            self._say(f"{len(file_bytes)} files{there}, {size_text(left_bytes)} to go")

    def advanced(self, name: str, done_bytes: int) -> None:
        """See ``safelight.hub.pull.Progress``."""
        with self._lock:
            self._active[name] = None
            self._done_bytes[name] = done_bytes
            self._draw()

    def finished(self, name: str) -> None:
        """See ``safelight.hub.pull.Progress``."""
        with self._lock:
            self._active.pop(name, None)
            self._done_bytes[name] = self._file_bytes[name]
            if name not in self._finished:
                self._finished.add(name)
                count = f"{len(self._finished)}/{len(self._file_bytes)}"
                self._say(f"{count} {printable(name)} {size_text(self._file_bytes[name])} verified")

    def _say(self, line: str) -> None:
        """A line that stays."""
        if self._is_live:
            self._write(self._live.draw(self._lines(), above=f"{fitted([Piece(line)], self._columns, self._look)}\r\n"))
        else:
            self._write(f"{line}\n")
            self._told_s = time.monotonic()

    def _draw(self) -> None:
        now_s = time.monotonic()
        if self._is_live and now_s - self._drawn_s >= _MIN_INTERVAL_S:
            self._drawn_s = now_s
            self._write(self._live.draw(self._lines()))
        elif not self._is_live and now_s - self._told_s >= _NEWS_INTERVAL_S:
            self._say(self._total_text())

    def _lines(self) -> list[str]:
        bars = [f" {self._bar(name)}" for name in list(self._active)[:_MAX_BARS]]
        total_bytes = sum(self._file_bytes.values())
        share = sum(self._done_bytes.values()) / total_bytes if total_bytes else 1.0
        total = Piece(f"{share:.0%}".rjust(4), bar_share=share, max_cells=_BAR_CELLS)
        return [*bars, " " + fitted([total, Piece(self._total_text())], self._columns, self._look)]

    def _bar(self, name: str) -> str:
        done_bytes, file_bytes = self._done_bytes[name], self._file_bytes[name]
        share = done_bytes / file_bytes if file_bytes else 1.0
        pieces = [
            Piece(f"{share:.0%}".rjust(4), bar_share=share, max_cells=_BAR_CELLS),
            Piece(printable(name)),
            Piece(f"{size_text(done_bytes)} of {size_text(file_bytes)}", "2"),
        ]
        return fitted(pieces, self._columns, self._look)

    def _total_text(self) -> str:
        done_bytes, total_bytes = sum(self._done_bytes.values()), sum(self._file_bytes.values())
        text = f"{size_text(done_bytes)} of {size_text(total_bytes)}"
        seconds, came_bytes = time.monotonic() - self._begun_s, done_bytes - self._begun_bytes
        if seconds < 1 or came_bytes <= 0:
            return text
        left_s = (total_bytes - done_bytes) * seconds / came_bytes
        separator = self._look.separator
        return f"{text}{separator}{size_text(came_bytes / seconds)}/s{separator}{duration_text(left_s)} left"

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    @property
    def _columns(self) -> int:
        return os.get_terminal_size(self._stream.fileno()).columns - 2 if self._is_live else 10_000
