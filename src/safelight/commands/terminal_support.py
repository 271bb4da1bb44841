"""How this terminal can show a picture: by what its environment says, and by asking it where that does not."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import struct
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from safelight.terminal import AUTO, NEVER, PictureProtocol, is_capable, look_of

_ANSWER_TIMEOUT_S = 1.0
"""Every terminal answers; one that is far away late, and then its answer would look like typed."""
_ASK_CELL_SIZE, _ASK_ATTRIBUTES = "\x1b[16t", "\x1b[c"
_CELL_SIZE = re.compile(r"\x1b\[6;(\d+);(\d+)t")
_ATTRIBUTES = re.compile(r"\x1b\[\?([\d;]*)c")
_SIXEL_ATTRIBUTE = "4"
_USUAL_CELL = (10, 20)


@dataclass(frozen=True, slots=True)
class PictureTerminal:
    """A protocol that stdout takes, and the size of a character cell in pixels (width, height)."""

    protocol: PictureProtocol
    cell: tuple[int, int] = _USUAL_CELL


def picture_terminal(show: str, environment: Mapping[str, str] = os.environ) -> PictureTerminal | None:
    """How to show pictures on stdout; ``None`` if it cannot, or if ``show`` says never."""
    if show == NEVER or not is_capable(sys.stdout, environment):
        return None
    known = named_protocol(environment) if show == AUTO else PictureProtocol(show)
    if known is not None:
        must_ask = known is PictureProtocol.SIXEL and _cell_by_ioctl() is None
        return PictureTerminal(known, _cell_by_ioctl() or (must_ask and _ask().cell) or _USUAL_CELL)
    answer = _ask()
    if answer.has_sixel:
        return PictureTerminal(PictureProtocol.SIXEL, _cell_by_ioctl() or answer.cell or _USUAL_CELL)
    return PictureTerminal(PictureProtocol.BLOCKS) if has_block_colours(environment) else None


def named_protocol(environment: Mapping[str, str]) -> PictureProtocol | None:
    """What the environment says for sure. Inside tmux and screen, it speaks of the terminal around them."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if environment.get("TMUX") or term.startswith(("tmux", "screen")):
        return None
    if term in ("xterm-kitty", "xterm-ghostty") or environment.get("KITTY_WINDOW_ID") or program == "ghostty":
        return PictureProtocol.KITTY
    if program in ("iTerm.app", "WezTerm", "mintty") or environment.get("LC_TERMINAL") == "iTerm2":
        return PictureProtocol.ITERM
    return None


def has_block_colours(environment: Mapping[str, str]) -> bool:
    """24-bit colours, and characters of which half is background."""
    look = look_of(sys.stdout, environment)
    has_24_bits = environment.get("COLORTERM", "") in ("truecolor", "24bit") or environment["TERM"].endswith("-direct")
    return look.has_colour and look.is_unicode and has_24_bits


@dataclass(frozen=True, slots=True)
class _Answer:
    has_sixel: bool = False
    cell: tuple[int, int] | None = None


def _ask() -> _Answer:
    """Primary device attributes, which every terminal tells, and before them the size of a cell."""
    if not sys.stdin.isatty():
        return _Answer()
    heard, end_s = "", time.monotonic() + _ANSWER_TIMEOUT_S
    try:
        with _unechoed(sys.stdin.fileno()) as fd:
            os.write(sys.stdout.fileno(), (_ASK_CELL_SIZE + _ASK_ATTRIBUTES).encode())
            while not _ATTRIBUTES.search(heard) and (left_s := end_s - time.monotonic()) > 0:
                if select.select([fd], [], [], left_s)[0]:
                    heard += os.read(fd, 256).decode("ascii", "replace")
    except (OSError, termios.error):  # in the background, say
        return _Answer()
    attributes, cell = _ATTRIBUTES.search(heard), _CELL_SIZE.search(heard)
    return _Answer(
        has_sixel=attributes is not None and _SIXEL_ATTRIBUTE in attributes[1].split(";"),
        cell=(int(cell[2]), int(cell[1])) if cell else None,
    )


@contextlib.contextmanager
def _unechoed(fd: int) -> Iterator[int]:
    """Keys come at once and are not shown."""
    if os.tcgetpgrp(fd) != os.getpgrp():
        raise OSError("in the background")
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd, termios.TCSANOW)
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)


def _cell_by_ioctl() -> tuple[int, int] | None:
    try:
        packed = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
    except OSError:
        return None
    rows, columns, width, height = struct.unpack("HHHH", packed)
    return (width // columns, height // rows) if rows and columns and width >= columns and height >= rows else None
