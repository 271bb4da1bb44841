"""Reads pictures, pixel by pixel, and says what they show: the judge of the embedded model.

It knows the palette, the outlines of the shapes and the meaning of sizes and places, and nothing of any model: no
latents, no seeds, no caption. ``judge`` compares what was found with the scene that was asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from training.drawing import Window, coverage
from training.scenes import COLOURS, POSITIONS, RELATIONS, SHAPES, SIZES, Scene, place

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_PALETTE = np.array(list(COLOURS.values()), float)
_NAMES = list(COLOURS)
_FRAME_PX = 4
_MIN_FRAME_SHARE = 0.9
_MIN_CONTRAST = 45.0
_MIN_AREA = 0.002
_MIN_OVERLAP = 0.75


@dataclass(frozen=True, slots=True)
class Found:
    """One object as seen. ``overlap`` is the intersection over union with the ideal outline of that shape."""

    colour: str
    shape: str
    overlap: float
    radius: float
    x: float
    y: float

    @property
    def size(self) -> str:
        return min(SIZES, key=lambda name: abs(SIZES[name] - self.radius))


@dataclass(frozen=True, slots=True)
class Verdict:
    """One verdict per property; those of objects hold only if they do for every object."""

    background: bool
    colour: bool
    shape: bool
    size: bool
    position: bool

    @property
    def is_right(self) -> bool:
        """Everything is as asked."""
        return self.background and self.colour and self.shape and self.size and self.position


def judge(pixels: Pixels, scene: Scene) -> Verdict:
    """``pixels`` (height, width, 3). For pairs, ``position`` is the relation."""
    background, is_even = find_background(pixels)
    found = find_things(pixels, background, scene.relation)
    if len(found) != len(scene.things) or None in found:
        return Verdict(background == scene.background and is_even, False, False, False, False)
    pairs = [(seen, asked) for seen, asked in zip(found, scene.things, strict=True) if seen is not None]
    return Verdict(
        background == scene.background and is_even,
        all(seen.colour == asked.colour for seen, asked in pairs),
        all(seen.shape == asked.shape and seen.overlap >= _MIN_OVERLAP for seen, asked in pairs),
        all(seen.size == asked.size for seen, asked in pairs),
        _is_placed(pixels, [seen for seen, _ in pairs], scene),
    )


def _is_placed(pixels: Pixels, found: list[Found], scene: Scene) -> bool:
    height, width = pixels.shape[:2]
    if scene.relation is not None:
        dx, dy = RELATIONS[scene.relation]
        first, second = found
        across, along = (first.x - second.x, first.y - second.y) if dx else (first.y - second.y, first.x - second.x)
        return across * (dx or dy) > 0.2 and abs(along) < 0.15
    thing = scene.things[0]
    distances = {
        name: np.hypot(found[0].x - x, found[0].y - y)
        for name in POSITIONS
        for x, y in [place(name, thing.radius, width / height)]
    }
    return min(distances, key=lambda name: float(distances[name])) == scene.position


def find_background(pixels: Pixels) -> tuple[str, bool]:
    """The colour of the outermost pixels, and whether nearly all of them have it."""
    frame = np.concatenate(
        [
            pixels[:_FRAME_PX].reshape(-1, 3),
            pixels[-_FRAME_PX:].reshape(-1, 3),
            pixels[:, :_FRAME_PX].reshape(-1, 3),
            pixels[:, -_FRAME_PX:].reshape(-1, 3),
        ]
    )
    return _dominant_colour(frame)


def _dominant_colour(pixels: Pixels) -> tuple[str, bool]:
    distances = np.linalg.norm(pixels[:, None, :].astype(float) - _PALETTE[None], axis=2)
    counts = np.bincount(distances.argmin(axis=1), minlength=len(_NAMES))
    return _NAMES[int(counts.argmax())], bool(counts.max() >= _MIN_FRAME_SHARE * len(pixels))


def find_things(pixels: Pixels, background: str, relation: str | None) -> list[Found | None]:
    """The only object or, with a relation, one in each half of the picture, the first one of the relation first."""
    contrast = np.linalg.norm(pixels.astype(float) - np.array(COLOURS[background], float), axis=2)
    mask = contrast > _MIN_CONTRAST
    if relation is None:
        return [_identify(pixels, mask, background)]
    height, width = mask.shape
    dx, dy = RELATIONS[relation]
    near = np.zeros_like(mask)
    if dx:
        near[:, : width // 2] = True
    else:
        near[: height // 2] = True
    halves = [mask & near, mask & ~near]
    return [_identify(pixels, half, background) for half in (halves if dx + dy < 0 else halves[::-1])]


def _identify(pixels: Pixels, mask: Mask, background: str) -> Found | None:
    """``mask`` is where the picture differs from its background; the object is where it is nearer to its own colour."""
    if mask.mean() < _MIN_AREA:
        return None
    colour, _ = _dominant_colour(pixels[_eroded(mask)] if _eroded(mask).any() else pixels[mask])
    ink, ground = (np.array(COLOURS[name], float) for name in (colour, background))
    mask = mask & (((pixels - (ink + ground) / 2) @ (ink - ground)) > 0)
    mask = _without_specks(mask)
    if not mask.any():
        return None
    fits = [_fit(mask, shape) for shape in range(len(SHAPES))]
    best = max(range(len(SHAPES)), key=lambda shape: fits[shape][0])
    overlap, place_of = fits[best]
    return Found(colour, SHAPES[best], overlap, *place_of)


def _eroded(mask: Mask) -> Mask:
    """Without its edge."""
    return _neighbours(mask, np.logical_and)


def _without_specks(mask: Mask) -> Mask:
    """Only what is left around pixels that survive an erosion: single stray pixels and hairs go."""
    return mask & _neighbours(_eroded(mask), np.logical_or)


def _neighbours(mask: Mask, combine: np.ufunc) -> Mask:
    """Combines each pixel with its eight neighbours."""
    for axis in (0, 1):
        mask = combine.reduce([mask, np.roll(mask, 1, axis), np.roll(mask, -1, axis)])
    return mask


def _fit(mask: Mask, shape: int) -> tuple[float, tuple[float, float, float]]:
    """(overlap, (radius, x, y)) of the ideal outline with the same area and centre of gravity."""
    height, width = mask.shape
    area, x_px, y_px = _moments(mask)
    unit_area, unit_x, unit_y = _UNIT_MOMENTS[shape]
    radius_px = math.sqrt(area / unit_area)
    x, y = (x_px - radius_px * unit_x) / width, (y_px - radius_px * unit_y) / height
    radius = radius_px / min(width, height)
    ideal = _outline(shape, (x, y, radius), width, height)
    return float((ideal & mask).sum() / max((ideal | mask).sum(), 1)), (radius, x, y)


def _outline(shape: int, place_of: tuple[float, float, float], width: int, height: int) -> Mask:
    cover = coverage(torch.tensor([shape]), torch.tensor([place_of]), Window.whole(1, width, height))[0]
    mask: Mask = cover.numpy() > 0.5
    return mask


def _moments(mask: Mask) -> tuple[float, float, float]:
    """Area in pixels, and the centre of gravity's x and y."""
    rows, columns = np.nonzero(mask)
    return float(len(rows)), float(columns.mean() + 0.5), float(rows.mean() + 0.5)


def _unit_moments(shape: int) -> tuple[float, float, float]:
    """Those of the shape with radius 1 around the origin."""
    side = 512
    area, x, y = _moments(_outline(shape, (0.5, 0.5, 0.25), side, side))
    unit = side / 4
    return area / unit**2, (x - side / 2) / unit, (y - side / 2) / unit


_UNIT_MOMENTS = [_unit_moments(shape) for shape in range(len(SHAPES))]
