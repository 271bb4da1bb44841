"""The judge of pictures: right about what was drawn, and not to be fooled."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from training.checker import Pixels, Verdict, judge
from training.drawing import draw
from training.scenes import SHAPES, Scene, Thing, held_out_scene, place, training_scene

_ASKED = Scene("blue", (Thing("red", "star", "medium", *place("at the top left", 0.2)),), position="at the top left")
_PAIR = Scene(
    "white",
    (Thing("red", "circle", "small", 0.26, 0.5), Thing("green", "square", "small", 0.74, 0.5)),
    relation="to the left of",
)


def _picture(scene: Scene, width: int = 256, height: int = 256) -> Pixels:
    pixels: Pixels = ((draw([scene], width, height)[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return pixels


def _with(scene: Scene, index: int = 0, **changes: object) -> Scene:
    things = list(scene.things)
    things[index] = dataclasses.replace(things[index], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(scene, things=tuple(things))


def _wrong(verdict: Verdict) -> set[str]:
    return {field.name for field in dataclasses.fields(verdict) if not getattr(verdict, field.name)}


def test_drawn_pictures_are_right() -> None:
    source = random.Random(0)
    for index in range(60):
        scene = held_out_scene(source, pair=index % 2 == 0)
        assert judge(_picture(scene), scene).is_right, scene


def test_drawn_pictures_are_right_with_noise_and_blur_of_a_codec() -> None:
    generator = np.random.default_rng(0)
    source = random.Random(1)
    for _ in range(20):
        scene = held_out_scene(source, pair=False)
        noisy = _picture(scene) + generator.normal(0, 6, (256, 256, 3))
        assert judge(noisy.clip(0, 255).astype(np.uint8), scene).is_right, scene


@pytest.mark.parametrize(
    ("shown", "wrong"),
    [
        (dataclasses.replace(_ASKED, background="cyan"), {"background"}),
        (_with(_ASKED, colour="pink"), {"colour"}),
        (_with(_ASKED, shape="heart"), {"shape"}),
        (_with(_ASKED, x=0.76, y=0.24), {"position"}),
        (_with(_ASKED, x=0.5, y=0.5), {"position"}),
    ],
    ids=["background", "colour", "shape", "other corner", "center"],
)
def test_one_thing_wrong_is_found_and_nothing_else(shown: Scene, wrong: set[str]) -> None:
    assert _wrong(judge(_picture(shown), _ASKED)) == wrong


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_wrong_size_is_found(size: str) -> None:
    assert "size" in _wrong(judge(_picture(_with(_ASKED, size=size, x=0.35, y=0.35)), _ASKED))


def test_a_swapped_pair_is_wrong_in_colour_and_shape() -> None:
    swapped = dataclasses.replace(_PAIR, things=_PAIR.things[::-1], relation="to the right of")
    assert judge(_picture(_PAIR), _PAIR).is_right
    assert judge(_picture(swapped), swapped).is_right
    mirrored = _picture(_PAIR)[:, ::-1]
    assert _wrong(judge(mirrored, _PAIR)) >= {"colour", "shape"}


def test_stray_pixels_and_hairs_change_no_verdict() -> None:
    pixels = _picture(_ASKED).copy()
    for column in range(3, 250, 24):
        pixels[200, column] = (225, 30, 35)
        pixels[20:230, 250] = (225, 30, 35)
    assert judge(pixels, _ASKED).is_right


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "circle"])
def test_a_blob_of_the_right_colour_size_and_place_has_not_the_shape(shape: str) -> None:
    asked = _with(_ASKED, shape=shape)
    blob = _picture(_with(_ASKED, shape="circle"))
    assert "shape" in _wrong(judge(blob, asked))


def test_a_missing_object_is_wrong() -> None:
    alone = dataclasses.replace(_PAIR, things=_PAIR.things[:1])
    assert _wrong(judge(_picture(alone), _PAIR)) == {"colour", "shape", "size", "position"}


def test_a_blank_picture_and_noise_are_wrong() -> None:
    blank = np.full((256, 256, 3), (35, 75, 220), np.uint8)
    assert _wrong(judge(blank, _ASKED)) == {"colour", "shape", "size", "position"}
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert {"background", "shape"} <= _wrong(judge(noise, _ASKED))


def test_other_picture_sizes_are_read_too() -> None:
    source = random.Random(4)
    for _ in range(10):
        scene = training_scene(source, 1.5)
        assert judge(_picture(scene, 384, 256), scene).is_right, scene
