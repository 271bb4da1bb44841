"""The pictures and captions that the embedded model learns from."""

from __future__ import annotations

import random

import pytest
import torch

from training import tokens
from training.captions import caption, varied_caption, vocabulary
from training.drawing import Window, draw, draw_packed, pack
from training.scenes import COLOURS, SHAPES, Scene, Thing, held_out_scene, place, random_scene, training_scene


def _colour_at(picture: torch.Tensor, x: float, y: float) -> tuple[int, ...]:
    _, height, width = picture.shape
    found = (picture[:, int(y * height), int(x * width)] + 1) * 127.5
    return tuple(found.round().int().tolist())


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape not in ("ring", "moon")])
def test_an_object_has_its_colour_inside_and_the_background_outside(shape: str) -> None:
    (picture,) = draw([Scene("blue", (Thing("red", shape, "large", 0.5, 0.5),))], 64, 64)
    assert _colour_at(picture, 0.5, 0.5) == COLOURS["red"]
    assert _colour_at(picture, 0.05, 0.05) == COLOURS["blue"]


def test_a_ring_is_open_in_the_middle() -> None:
    (picture,) = draw([Scene("white", (Thing("black", "ring", "large", 0.5, 0.5),))], 128, 128)
    assert _colour_at(picture, 0.5, 0.5) == COLOURS["white"]
    assert _colour_at(picture, 0.5 + 0.29 * 0.76, 0.5) == COLOURS["black"]


def test_no_object_leaves_the_picture() -> None:
    source = random.Random(0)
    scenes = [random_scene(source) for _ in range(200)]
    pictures = draw(scenes, 64, 64)
    for scene, picture in zip(scenes, pictures, strict=True):
        frame = torch.cat([picture[:, 0], picture[:, -1], picture[:, :, 0], picture[:, :, -1]], dim=1)
        assert torch.allclose(frame, torch.tensor(COLOURS[scene.background])[:, None] / 127.5 - 1), scene


def test_a_window_is_a_part_of_the_whole_picture() -> None:
    packed = pack([held_out_scene(random.Random(1), pair=True)])
    whole = draw_packed(packed, Window.whole(1, 128, 96))
    part = draw_packed(packed, Window(32, 16, 128, 96, torch.tensor([40.0]), torch.tensor([24.0])))
    assert torch.allclose(part, whole[:, :, 24:40, 40:72], atol=1e-6)


def test_positions_are_places_of_the_picture() -> None:
    assert place("in the center", 0.2) == (0.5, 0.5)
    assert place("at the top right", 0.2) == pytest.approx((0.76, 0.24))


def test_training_never_shows_what_is_held_out() -> None:
    source = random.Random(2)
    assert not any(training_scene(source).is_held_out for _ in range(300))
    assert all(held_out_scene(source, pair=pair).is_held_out for pair in (True, False) for _ in range(50))


def test_captions_name_everything_and_only_in_words_that_the_tokenizers_know() -> None:
    source = random.Random(3)
    scene = Scene("gray", (Thing("orange", "star", "large", 0.5, 0.3),), position="at the top")
    assert caption(scene) == "a large orange star at the top on a gray background"
    texts = [varied_caption(random_scene(source), source).replace("xyzzy", "") for _ in range(2000)]
    assert len(set(texts)) > 1500
    for ids in tokens.encode(texts, with_start=False):
        assert tokens.UNK not in ids and tokens.EOS in ids  # nothing unknown, nothing cut off


def test_unknown_words_become_the_unknown_token() -> None:
    ids = tokens.encode(["A red Zeppelin!"], with_start=True)[0]
    known = {word: index for index, word in enumerate([*tokens.SPECIAL, *vocabulary()])}
    assert ids[:5] == [tokens.BOS, known["a"], known["red"], tokens.UNK, tokens.EOS]
    assert set(ids[5:]) == {tokens.PAD}
