"""Draws scenes as pictures from signed distances, many at a time, on any device; no files, no library of drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.scenes import COLOURS, SHAPES, Scene

_MAX_THINGS = 2


def draw(scenes: Sequence[Scene], width: int, height: int, device: torch.device | str = "cpu") -> Tensor:
    """Pictures of shape (batch, 3, height, width) in -1..1, with edges one pixel soft."""
    return draw_packed(pack(scenes), Window.whole(len(scenes), width, height), device)


def pack(scenes: Sequence[Scene]) -> Tensor:
    """Scenes as numbers, (batch, 11): background, then per thing colour, shape, x, y, radius; shape -1 is no thing."""
    order = {name: index for index, name in enumerate(COLOURS)}
    rows = []
    for scene in scenes:
        row = [float(order[scene.background])]
        for thing in scene.things:
            row += [order[thing.colour], SHAPES.index(thing.shape), thing.x, thing.y, thing.radius]
        rows.append(row + [0.0, -1.0, 0.5, 0.5, 0.1] * (_MAX_THINGS - len(scene.things)))
    return torch.tensor(rows)


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a ``full_width`` x ``full_height`` picture that is drawn: one ``left`` and ``top`` per picture."""

    width: int
    height: int
    full_width: int
    full_height: int
    left: Tensor
    top: Tensor

    @classmethod
    def whole(cls, count: int, width: int, height: int) -> Window:
        """Everything."""
        return cls(width, height, width, height, torch.zeros(count), torch.zeros(count))


def draw_packed(packed: Tensor, window: Window, device: torch.device | str = "cpu") -> Tensor:
    """As ``draw``, from what ``pack`` made, and only as much as lies in the window; ``packed`` is on the CPU."""
    colours = torch.tensor(list(COLOURS.values())) / 127.5 - 1.0
    pictures = colours[packed[:, 0].long()].to(device)[:, :, None, None].expand(-1, -1, window.height, window.width)
    for layer in range(_MAX_THINGS):
        thing = packed[:, 1 + 5 * layer : 6 + 5 * layer]
        cover = coverage(thing[:, 1].long(), thing[:, 2:5], window, device)[:, None]
        inks = colours[thing[:, 0].long()].to(device)[:, :, None, None]
        pictures = pictures * (1 - cover) + inks * cover
    return pictures


def coverage(shapes: Tensor, places: Tensor, window: Window, device: torch.device | str = "cpu") -> Tensor:
    """How much of each pixel each shape covers, 0..1, as (count, height, width).

    ``shapes`` are indices into ``SHAPES``, -1 for none; ``places`` hold x, y in 0..1 and the radius per shorter side.
    Both are on the CPU: which picture holds which shape is sorted there, so that the device never waits for it.
    """
    order = [(shapes == index).nonzero()[:, 0] for index in range(len(SHAPES))]
    places = places.to(device)
    columns = torch.arange(window.width, device=device) + 0.5 + window.left.to(device)[:, None]
    rows = torch.arange(window.height, device=device) + 0.5 + window.top.to(device)[:, None]
    radius = places[:, 2:3] * min(window.full_width, window.full_height)
    x = (columns - places[:, 0:1] * window.full_width) / radius
    y = (rows - places[:, 1:2] * window.full_height) / radius
    result = torch.zeros(len(shapes), window.height, window.width, device=device)
    for name, found in zip(SHAPES, order, strict=True):
        if len(found):
            chosen = found.to(device)
            distance = _DISTANCES[name](x[chosen][:, None, :], y[chosen][:, :, None]) * radius[chosen][:, :, None]
            result[chosen] = (0.5 - distance).clamp(0.0, 1.0)
    return result


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1.0


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.9


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    slope = math.hypot(1.0, 1.9 / 1.05)
    side = (x.abs() * (1.9 / 1.05) - (y + 1.0)) / slope
    return torch.maximum(side, y - 0.9)


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Five points: the distance to the nearer edge of one tenth of the figure, folded onto itself."""
    angle = torch.atan2(x, -y)
    sector = 2 * math.pi / 5
    folded = (angle - torch.round(angle / sector) * sector).abs()
    length = torch.hypot(x, y)
    px, py = length * torch.sin(folded), length * torch.cos(folded)
    inner = 0.42
    ax, ay = 0.0, 1.0
    bx, by = inner * math.sin(sector / 2), inner * math.cos(sector / 2)
    nx, ny = ay - by, bx - ax
    return ((px - ax) * nx + (py - ay) * ny) / math.hypot(nx, ny)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """Two discs, the wedge that touches them from below, and what lies between."""
    px, py = x.abs(), 0.07 - y
    disc = torch.hypot(px - 0.48, py - 0.42) - 0.52
    wedge = torch.maximum((px - py - 0.795) / math.sqrt(2.0), py - 0.052)
    middle = torch.maximum(px - 0.48, (py - 0.15).abs() - 0.3)
    return torch.minimum(torch.minimum(disc, wedge), middle)


def _diamond(x: Tensor, y: Tensor) -> Tensor:
    return (x.abs() * 1.35 + y.abs() - 1.0) / math.hypot(1.35, 1.0)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    arm = 0.32
    bar = torch.maximum(x.abs() - 1.0, y.abs() - arm)
    post = torch.maximum(x.abs() - arm, y.abs() - 1.0)
    return torch.minimum(bar, post)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.76).abs() - 0.24


def _moon(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(x, y) - 1.0, 0.85 - torch.hypot(x - 0.55, y))


_DISTANCES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "diamond": _diamond,
    "cross": _cross,
    "ring": _ring,
    "moon": _moon,
}
