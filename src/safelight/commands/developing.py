"""What ``safelight generate`` shows meanwhile: a bar, and above it the picture as far as it is."""

from __future__ import annotations

import os
import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from safelight.commands.terminal_support import PictureTerminal
from safelight.protocol import LoadProgress
from safelight.status_text import is_loading, load_line, step_piece
from safelight.terminal import LiveLines, Piece, fitted, is_capable, look_of

if TYPE_CHECKING:
    from safelight.commands.terminal_picture import Frame

_BAR_CELLS = 40
_PREVIEWS = 3


class Developing:
    """Open it as a context manager. Its methods may be called from any thread; without a terminal they do nothing."""

    def __init__(self, pictures: PictureTerminal | None) -> None:
        self._pictures = pictures
        self._stream = next((stream for stream in (sys.stdout, sys.stderr) if is_capable(stream)), None)
        self._look = look_of(sys.stdout if self._stream is None else self._stream)
        self._live = LiveLines()
        self._frame: Frame | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The bar goes, the picture stays."""
        with self._lock:
            self._write(self._live.draw([]))
            self._stream = None

    @property
    def previews(self) -> int:
        """How many unfinished pictures are worth asking for."""
        return 0 if self._pictures is None else _PREVIEWS

    def waiting(self, status: dict[str, Any] | None = None) -> None:
        """Nothing is drawn yet; ``status`` is the server's, which may be loading."""
        workers = status["workers"] if status else []
        if workers and all(is_loading(worker) for worker in workers):
            self._show(load_line(workers[0], self._columns, self._look))
        else:
            self._show(fitted([Piece("waiting")], self._columns, self._look))

    def loading(self, device: str, progress: LoadProgress) -> None:
        """The engine is one of our own."""
        worker = {"device": device, "state": "loading", "eta_s": None, "error": None} | msgspec.structs.asdict(progress)
        self._show(load_line(worker, self._columns, self._look))

    def step(self, step: int, total_steps: int) -> None:
        """So many denoising steps are done."""
        bar = step_piece({"step": step, "total_steps": total_steps}, _BAR_CELLS)
        self._show(fitted([bar, Piece("developing", "2")], self._columns, self._look))

    def picture(self, file: bytes) -> None:
        """An unfinished picture, or the finished one, in place of the one before."""
        with self._lock:
            if self._pictures is None or self._stream is None:
                return
            from safelight.commands.terminal_picture import drawn, frame_of, size_of

            lines = self._live.shown
            if self._frame is None:
                self._frame = frame_of(size_of(file), self._pictures.cell, self._size)
                self._write(self._live.draw([]) + "\n" * self._frame.rows)
            # Saved and restored: each protocol leaves the cursor somewhere else.
            picture = drawn(file, self._frame, self._pictures)
            self._write(f"\x1b7\x1b[{self._frame.rows}A\r{picture}\x1b8{self._live.draw(lines)}")

    def _show(self, line: str) -> None:
        with self._lock:
            if [f" {line}"] != self._live.shown:
                self._write(self._live.draw([f" {line}"]))

    def _write(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()

    @property
    def _columns(self) -> int:
        return self._size.columns - 2

    @property
    def _size(self) -> os.terminal_size:
        return os.terminal_size((80, 24)) if self._stream is None else os.get_terminal_size(self._stream.fileno())
