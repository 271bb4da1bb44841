"""What a terminal can show, and lines at its bottom that are drawn over and over without filling its history."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TextIO

_HEAVY, _HALF, _LIGHT = "━", "╸", "─"


class PictureProtocol(StrEnum):
    """Ways of putting a picture on a terminal."""

    KITTY = "kitty"
    ITERM = "iterm"
    SIXEL = "sixel"
    BLOCKS = "blocks"


AUTO, NEVER = "auto", "never"
SHOW_CHOICES = (AUTO, *(protocol.value for protocol in PictureProtocol), NEVER)


@dataclass(frozen=True, slots=True)
class Look:
    """How text may look: with ANSI colours, with characters beyond ASCII."""

    has_colour: bool = False
    is_unicode: bool = True

    @property
    def separator(self) -> str:
        return " · " if self.is_unicode else " | "

    @property
    def ellipsis(self) -> str:
        return "…" if self.is_unicode else "~"

    def styled(self, text: str, code: str) -> str:
        """``code`` as in ``ESC [ code m``; empty for none."""
        return f"\x1b[{code}m{text}\x1b[m" if code and text and self.has_colour else text

    def bar(self, share: float, cells: int) -> str:
        """A bar of that many cells, filled from 0 to 1."""
        halves = round(min(max(share, 0.0), 1.0) * cells * 2)
        full, half = divmod(halves, 2)
        if not self.is_unicode:
            return "#" * full + "-" * (cells - full)
        done, left = _HEAVY * full + _HALF * half, _LIGHT * (cells - full - half)
        return self.styled(done, "36") + self.styled(left, "2")


def is_capable(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether lines can be drawn over: a terminal, and not a dumb one."""
    return stream.isatty() and environment.get("TERM", "dumb") != "dumb"


def look_of(stream: TextIO, environment: Mapping[str, str] = os.environ) -> Look:
    """https://no-color.org is kept to."""
    has_colour = is_capable(stream, environment) and not environment.get("NO_COLOR")
    return Look(has_colour, is_unicode=(stream.encoding or "").lower().startswith("utf"))


def cells(text: str) -> int:
    """Columns that plain text takes in a terminal."""
    if text.isascii():
        return len(text)
    return sum(_cells(character) for character in text)


def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def printable(text: str) -> str:
    """One line without control characters: what others wrote may not steer the terminal."""
    return "".join(" " if unicodedata.category(character) == "Cc" else character for character in text)


def clipped(text: str, columns: int, look: Look) -> str:
    """Plain text in at most so many columns."""
    if cells(text) <= columns:
        return text
    kept, used = "", 1
    for character in text:
        used += _cells(character)
        if used > columns:
            break
        kept += character
    return (kept + look.ellipsis)[: max(columns, 0)]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a line: plain text in one colour, or, with ``bar_share``, a bar before it that takes what room is left
    up to ``max_cells``.
    """

    text: str
    style: str = ""
    bar_share: float | None = None
    max_cells: int = 0


MIN_BAR_CELLS = 6


def fitted(pieces: Sequence[Piece], columns: int, look: Look) -> str:
    """The pieces in one line, from the first on as many as fit; the most important ones come first."""
    kept: list[Piece] = []
    used = 0
    for piece in pieces:
        width = cells(piece.text) + (MIN_BAR_CELLS + 1 if piece.bar_share is not None else 0)
        width += len(look.separator) if kept else 0
        if used + width > columns:
            break
        kept.append(piece)
        used += width
    if not kept:
        return look.styled(clipped(pieces[0].text, columns, look), pieces[0].style) if pieces else ""
    return look.separator.join(_drawn(piece, columns - used, look) for piece in kept)


def _drawn(piece: Piece, free: int, look: Look) -> str:
    text = look.styled(piece.text, piece.style)
    if piece.bar_share is None:
        return text
    bar = look.bar(piece.bar_share, min(MIN_BAR_CELLS + free, piece.max_cells))
    return f"{bar} {text}".rstrip()


class LiveLines:
    """Builds what to write so that lines at the bottom stay there while text is printed above them.

    Between two calls the cursor rests where the first of them begins: after a resize it still does. The lines must be
    shorter than the terminal is wide.
    """

    def __init__(self) -> None:
        self.shown: Sequence[str] = ()

    def draw(self, lines: Sequence[str], above: str = "") -> str:
        """``above`` is whole lines. Each line is written over the old one: nothing is blank in between."""
        self.shown = list(lines)
        cleared = f"\r\x1b[J{above}" if above else "\r"
        if not lines:
            return f"{cleared}\x1b[J"
        up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
        return cleared + "\r\n".join(f"{line}\x1b[K" for line in lines) + f"\x1b[J{up}\r"
