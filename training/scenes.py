"""What a picture can hold and how it is said: scenes of one or two objects."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 30, 35),
    "orange": (250, 140, 15),
    "yellow": (250, 225, 40),
    "green": (35, 150, 60),
    "lime": (160, 230, 50),
    "cyan": (50, 210, 225),
    "blue": (35, 75, 220),
    "purple": (135, 45, 185),
    "pink": (250, 145, 190),
    "brown": (120, 70, 30),
    "black": (15, 15, 18),
    "white": (248, 248, 248),
    "gray": (128, 128, 130),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring", "moon")
SIZES: dict[str, float] = {"small": 0.13, "medium": 0.20, "large": 0.29}
"""Half the extent of an object, as a fraction of the picture's shorter side."""

POSITIONS: dict[str, tuple[int, int]] = {
    "at the top left": (-1, -1),
    "at the top": (0, -1),
    "at the top right": (1, -1),
    "on the left": (-1, 0),
    "in the center": (0, 0),
    "on the right": (1, 0),
    "at the bottom left": (-1, 1),
    "at the bottom": (0, 1),
    "at the bottom right": (1, 1),
}
RELATIONS: dict[str, tuple[int, int]] = {
    "to the left of": (-1, 0),
    "to the right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}
MARGIN = 0.04
"""Space between an object that is named to be at a side and that side."""

PAIR_OFFSET = 0.24
"""Distance of each object of a pair from the middle of the picture."""

PAIR_SIZES = ("small", "medium")
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Thing:
    """One object. ``x`` and ``y`` in 0..1 from the top left; ``radius`` as a fraction of the shorter side."""

    colour: str
    shape: str
    size: str
    x: float
    y: float

    @property
    def radius(self) -> float:
        return SIZES[self.size]


@dataclass(frozen=True, slots=True)
class Scene:
    """``relation`` holds between the first object and the second; ``position`` is the only object's."""

    background: str
    things: tuple[Thing, ...]
    position: str | None = None
    relation: str | None = None

    @property
    def is_held_out(self) -> bool:
        """Whether its combination of colours and shapes is kept from training, by a hash of their names."""
        key = "|".join(f"{thing.colour} {thing.shape}" for thing in self.things) + f"|{self.background}"
        return hashlib.sha256(key.encode()).digest()[0] < 256 * HELD_OUT_SHARE


def place(position: str, radius: float, aspect: float = 1.0) -> tuple[float, float]:
    """Centre of an object of ``radius`` at ``position``; ``aspect`` is width over height."""
    column, row = POSITIONS[position]
    reach_x, reach_y = radius / max(aspect, 1.0), radius * min(aspect, 1.0)
    return 0.5 + column * (0.5 - MARGIN - reach_x), 0.5 + row * (0.5 - MARGIN - reach_y)


def random_scene(source: random.Random, aspect: float = 1.0, pair_share: float = 0.4) -> Scene:
    """Any scene, held out or not."""
    background = source.choice(list(COLOURS))
    others = [colour for colour in COLOURS if colour != background]
    if source.random() < pair_share:
        relation = source.choice(list(RELATIONS))
        dx, dy = RELATIONS[relation]
        size = source.choice(PAIR_SIZES)
        first = Thing(
            source.choice(others), source.choice(SHAPES), size, 0.5 + dx * PAIR_OFFSET, 0.5 + dy * PAIR_OFFSET
        )
        second = Thing(
            source.choice(others), source.choice(SHAPES), size, 0.5 - dx * PAIR_OFFSET, 0.5 - dy * PAIR_OFFSET
        )
        return Scene(background, (first, second), relation=relation)
    position = source.choice(list(POSITIONS)) if source.random() < 0.6 else "in the center"
    size = source.choice(list(SIZES))
    x, y = place(position, SIZES[size], aspect)
    return Scene(background, (Thing(source.choice(others), source.choice(SHAPES), size, x, y),), position=position)


def training_scene(source: random.Random, aspect: float = 1.0) -> Scene:
    """A scene that is not held out."""
    while (scene := random_scene(source, aspect)).is_held_out:
        pass
    return scene


def held_out_scene(source: random.Random, pair: bool) -> Scene:
    """A scene that training never shows."""
    while not (scene := random_scene(source, pair_share=float(pair))).is_held_out:
        pass
    return scene
