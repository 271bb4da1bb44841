"""Reads back what was written to a terminal: pictures in each protocol as pixels."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pyte
from PIL import Image

_KITTY = re.compile(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\")
_ITERM = re.compile(r"\x1b\]1337;File=([^:]*):([^\x07]*)\x07")
_SIXEL = re.compile(r"\x1bP[\d;]*q(.*?)\x1b\\", re.DOTALL)
_SIXEL_TOKEN = re.compile(r'"[\d;]+|#[\d;]+|!\d+[?-~]|[?-~]|[$-]')


def kitty_pictures(written: str) -> list[tuple[dict[str, str], Image.Image]]:
    """Each transmission: its keys and what it shows."""
    found: list[tuple[dict[str, str], str]] = []
    for keys, chunk in _KITTY.findall(written):
        control = dict(key.split("=") for key in keys.split(","))
        if "a" in control:
            found.append((control, ""))
        found[-1] = (found[-1][0], found[-1][1] + chunk)
        assert len(chunk) <= 4096
    return [(control, _opened(text)) for control, text in found]


def iterm_pictures(written: str) -> list[tuple[dict[str, str], Image.Image]]:
    """Each inline image: its arguments and what it shows."""
    return [
        (dict(argument.split("=") for argument in arguments.split(";")), _opened(text))
        for arguments, text in _ITERM.findall(written)
    ]


def _opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text, validate=True)))


def sixel_pictures(written: str) -> list[Image.Image]:
    """Each sixel image, drawn as a terminal would."""
    return [_sixel(data) for data in _SIXEL.findall(written)]


def _sixel(data: str) -> Image.Image:
    colours: dict[int, tuple[int, int, int]] = {}
    pixels = np.zeros((0, 0, 3), np.uint8)
    x = top = colour = 0
    tokens = _SIXEL_TOKEN.findall(data)
    assert "".join(tokens) == data
    for token in tokens:
        numbers = [int(number) for number in re.findall(r"\d+", token)]
        if token[0] == '"':
            pixels = np.zeros((numbers[3], numbers[2], 3), np.uint8)
        elif token[0] == "#":
            colour = numbers[0]
            if len(numbers) == 5:
                colours[colour] = (numbers[2], numbers[3], numbers[4])
        elif token == "$":
            x = 0
        elif token == "-":
            x, top = 0, top + 6
        else:
            length = numbers[0] if token[0] == "!" else 1
            bits = ord(token[-1]) - 63
            for row in [row for row in range(6) if bits >> row & 1]:
                pixels[top + row, x : x + length] = np.rint(np.array(colours[colour]) * 2.55)
            x += length
    return Image.fromarray(pixels)


def block_picture(screen: pyte.Screen) -> Image.Image:
    """The half blocks on the screen, one pixel each half."""
    rows = []
    for number in range(screen.lines):
        cells = [screen.buffer[number][column] for column in range(screen.columns)]
        cells = [cell for cell in cells if cell.data == "▀"]
        if cells:
            rows += [[_rgb(cell.fg) for cell in cells], [_rgb(cell.bg) for cell in cells]]
    return Image.fromarray(np.array(rows, np.uint8))


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[:2], 16), int(colour[2:4], 16), int(colour[4:], 16)


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean distance of the colours, 0 to 255, once both have the smaller one's size."""
    size = min(one.size, other.size)
    first, second = (image.convert("RGB").resize(size, Image.Resampling.BOX) for image in (one, other))
    return float(np.abs(np.asarray(first, float) - np.asarray(second, float)).mean())
