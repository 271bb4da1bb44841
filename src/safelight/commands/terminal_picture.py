"""Pictures as what terminals understand: kitty's graphics, iTerm2's inline images, sixels, or coloured half blocks.

Each is written where the cursor is and fills so many columns and rows; it may leave the cursor anywhere.

https://sw.kovidgoyal.net/kitty/graphics-protocol/ · https://iterm2.com/documentation-images.html
https://vt100.net/docs/vt3xx-gp/chapter14.html
"""

from __future__ import annotations

import base64
import io
import os
import re
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from PIL import Image

from safelight.commands.terminal_support import PictureTerminal
from safelight.terminal import PictureProtocol

_KITTY_CHUNK_CHARS = 4096
_SIXEL_COLOURS = 256
_SIXEL_ROWS = 6
_MAX_ROWS = 20
_ROWS_BELOW = 3


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a picture goes: columns and rows of the terminal."""

    columns: int
    rows: int


def frame_of(size: tuple[int, int], cell: tuple[int, int], terminal: os.terminal_size) -> Frame:
    """As large as is pleasant, in the shape of a picture of ``size`` pixels."""
    rows = max(min(terminal.lines - _ROWS_BELOW, _MAX_ROWS), 1)
    columns = rows * cell[1] * size[0] / (size[1] * cell[0])
    shrink = min(1.0, (terminal.columns - 1) / columns)
    return Frame(max(round(columns * shrink), 1), max(round(rows * shrink), 1))


def drawn(file: bytes, frame: Frame, terminal: PictureTerminal) -> str:
    """An encoded picture as the characters that show it."""
    match terminal.protocol:
        case PictureProtocol.KITTY:
            return kitty(file, frame)
        case PictureProtocol.ITERM:
            return iterm(file, frame)
        case PictureProtocol.SIXEL:
            width, height = terminal.cell
            return sixel(_resized(file, frame.columns * width, frame.rows * height))
        case PictureProtocol.BLOCKS:
            return blocks(_resized(file, frame.columns, 2 * frame.rows))


def kitty(file: bytes, frame: Frame) -> str:
    """The same id each time: a new picture takes the place of the one before."""
    png = file if file.startswith(b"\x89PNG") else _as_png(file)
    text = base64.b64encode(png).decode()
    chunks = [text[start : start + _KITTY_CHUNK_CHARS] for start in range(0, len(text), _KITTY_CHUNK_CHARS)]
    keys = f"a=T,f=100,q=2,C=1,i={os.getpid()},p=1,c={frame.columns},r={frame.rows},"
    return "".join(
        f"\x1b_G{'' if number else keys}m={int(number < len(chunks) - 1)};{chunk}\x1b\\"
        for number, chunk in enumerate(chunks)
    )


def iterm(file: bytes, frame: Frame) -> str:
    """Any format that we write; the frame has the picture's shape already."""
    arguments = f"inline=1;size={len(file)};width={frame.columns};height={frame.rows};preserveAspectRatio=0"
    return f"\x1b]1337;File={arguments}:{base64.b64encode(file).decode()}\x07"


def sixel(image: Image.Image) -> str:
    """In 256 colours of its own; each pixel of the image is one of the screen."""
    indexed = image.quantize(_SIXEL_COLOURS, dither=Image.Dither.NONE)
    pixels, palette = np.asarray(indexed), np.asarray(indexed.getpalette()).reshape(-1, 3)
    colours = (f"#{number};2;{r};{g};{b}" for number, (r, g, b) in enumerate(np.rint(palette / 2.55).astype(int)))
    bands = (_band(pixels[top : top + _SIXEL_ROWS]) for top in range(0, len(pixels), _SIXEL_ROWS))
    return f'\x1bP0;1;0q"1;1;{image.width};{image.height}{"".join(colours)}{"-".join(bands)}\x1b\\'


def _band(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> str:
    """Six rows of pixels: for each colour one character a column, whose bits say which of the six have it."""
    bits = 1 << np.arange(len(pixels))
    lines = []
    for colour in np.unique(pixels):
        characters = (63 + bits @ (pixels == colour)).astype(np.uint8).tobytes().decode().rstrip("?")
        lines.append(f"#{colour}" + re.sub(r"(.)\1{3,}", lambda run: f"!{len(run[0])}{run[1]}", characters))
    return "$".join(lines)


def blocks(image: Image.Image) -> str:
    """Two pixels a character, the upper one as its colour and the lower one behind it; ends in the last line."""
    pixels = np.asarray(image)
    lines = []
    for top in range(0, len(pixels) - 1, 2):
        columns = [(*upper, *lower) for upper, lower in zip(pixels[top], pixels[top + 1], strict=True)]
        runs = ((colours, len(list(run))) for colours, run in groupby(columns))
        lines.append(
            "".join(f"\x1b[38;2;{r};{g};{b};48;2;{r2};{g2};{b2}m{'▀' * n}" for (r, g, b, r2, g2, b2), n in runs)
        )
    return "\x1b[m\r\n".join(lines) + "\x1b[m"


def size_of(file: bytes) -> tuple[int, int]:
    """Width and height in pixels."""
    return Image.open(io.BytesIO(file)).size


def _resized(file: bytes, width: int, height: int) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def _as_png(file: bytes) -> bytes:
    encoded = io.BytesIO()
    Image.open(io.BytesIO(file)).save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()
