"""The adapter that is shipped: shapes, sizes and places as the prompt says, colours of the pale half of the palette."""

from __future__ import annotations

import asyncio
import importlib.resources
import random

from benchmarks.check_pastel import measure
from training.pastel import PALE, pale
from training.scenes import COLOURS, random_scene


def test_pictures_keep_to_the_prompt_in_pale_colours() -> None:
    found = asyncio.run(measure(12, None))
    assert found["with"]["everything"] >= 0.8
    assert found["with"]["lightness"] > found["without"]["lightness"] + 0.1


def test_a_pale_scene_hides_nothing_and_has_no_strong_colour() -> None:
    source = random.Random(1)
    for scene in (random_scene(source) for _ in range(500)):
        paler = pale(scene)
        assert paler.background not in {thing.colour for thing in paler.things}
        assert {paler.background, *(thing.colour for thing in paler.things)} <= set(COLOURS) - set(PALE) | {"gray"}


def test_it_is_small_and_lies_in_the_package() -> None:
    file = importlib.resources.files("safelight") / "models" / "shapes" / "loras" / "pastel.safetensors"
    assert 0 < len(file.read_bytes()) < 400_000
