"""Parameters of a job: checked on construction, with the member to blame."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from safelight.errors import InvalidRequest, InvalidSize, InvalidValue
from safelight.params import (
    MAX_IMAGES,
    MAX_PROMPT_CHARS,
    MAX_SEED,
    GenerationParams,
    ImageFormat,
    SourceImage,
    check_size,
)
from tests.unit.running_front import params


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \t\n\u3000"}, "prompt"),
        ({"prompt": "x" * (MAX_PROMPT_CHARS + 1)}, "prompt"),
        ({"prompt": "a \ud800 circle"}, "prompt"),
        ({"prompt": "a \0 circle"}, "prompt"),
        ({"negative_prompt": "x" * (MAX_PROMPT_CHARS + 1)}, "negative_prompt"),
        ({"prompt": " ", "source": SourceImage("a", reference_size=(64, 64))}, "prompt"),
        ({"negative_prompt": "\udfff"}, "negative_prompt"),
        ({"negative_prompt": "\0"}, "negative_prompt"),
        ({"width": 0}, "width"),
        ({"width": -64}, "width"),
        ({"width": 33}, "width"),
        ({"width": 8192 + 16}, "width"),
        ({"width": 10**400}, "width"),
        ({"height": 0}, "height"),
        ({"height": 47}, "height"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": -1}, "num_inference_steps"),
        ({"num_inference_steps": 201}, "num_inference_steps"),
        ({"num_inference_steps": 10**400}, "num_inference_steps"),
        ({"guidance_scale": math.nan}, "guidance_scale"),
        ({"guidance_scale": math.inf}, "guidance_scale"),
        ({"guidance_scale": -0.1}, "guidance_scale"),
        ({"guidance_scale": 100.1}, "guidance_scale"),
        ({"true_cfg_scale": math.nan}, "true_cfg_scale"),
        ({"true_cfg_scale": -math.inf}, "true_cfg_scale"),
        ({"true_cfg_scale": 0.5}, "true_cfg_scale"),
        ({"max_sequence_length": 0}, "max_sequence_length"),
        ({"max_sequence_length": 513}, "max_sequence_length"),
        ({"num_images": 0}, "n"),
        ({"num_images": MAX_IMAGES + 1}, "n"),
        ({"seed": -1}, "seed"),
        ({"seed": MAX_SEED + 1}, "seed"),
        ({"seed": MAX_SEED, "num_images": 2}, "seed"),
        ({"output_compression": -1}, "output_compression"),
        ({"output_compression": 101}, "output_compression"),
    ],
    ids=lambda value: str(value)[:40].encode("ascii", "backslashreplace").decode(),
)
def test_a_wrong_value_is_refused_with_its_name(members: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        params(**members)
    assert caught.value.param == param
    assert caught.value.message.startswith(param)
    assert len(caught.value.message) < 600


@pytest.mark.parametrize(
    "members",
    [
        {"prompt": "x" * MAX_PROMPT_CHARS},
        {"prompt": "שלום 👩‍👩‍👧 e\u0301 \ufffd \x07"},
        {"width": 16, "height": 8192},
        {"num_inference_steps": 1},
        {"guidance_scale": 0.0},
        {"guidance_scale": 100.0},
        {"true_cfg_scale": 1.0},
        {"max_sequence_length": 512},
        {"num_images": MAX_IMAGES},
        {"seed": 0},
        {"seed": MAX_SEED},
        {"output_compression": 0},
        {"output_compression": 100},
        {"negative_prompt": ""},
    ],
    ids=lambda members: str(members)[:40].encode("ascii", "backslashreplace").decode(),
)
def test_the_limits_themselves_are_allowed(members: dict[str, Any]) -> None:
    for name, value in members.items():
        assert getattr(params(**members), name) == value


def test_image_i_is_made_with_seed_plus_i() -> None:
    assert params(seed=7, num_images=3).seeds == (7, 8, 9)
    assert params(num_inference_steps=4, num_images=3).total_steps == 12


def test_params_are_frozen() -> None:
    with pytest.raises(AttributeError):
        params().seed = 2  # type: ignore[misc]


def test_params_survive_the_way_to_the_worker() -> None:
    sent = params(prompt="שלום 👩‍👩‍👧", seed=MAX_SEED, output_format=ImageFormat.WEBP, guidance_scale=3.5)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=GenerationParams) == sent


@pytest.mark.parametrize("side", [16, 1024, 8192])
def test_a_multiple_of_16_can_be_drawn(side: int) -> None:
    check_size(side, side)


def test_the_size_error_names_the_side_and_the_rule() -> None:
    with pytest.raises(InvalidSize, match="height is 47: it must be a multiple of 16 from 16 to 8192"):
        check_size(32, 47)


def test_a_media_type_belongs_to_each_format() -> None:
    assert [image_format.media_type for image_format in ImageFormat] == ["image/png", "image/jpeg", "image/webp"]


def test_out_of_range_is_an_invalid_value() -> None:
    with pytest.raises(InvalidValue, match="n is 11: it must be from 1 to 10"):
        params(num_images=11)


def test_jobs_of_one_size_and_text_length_have_one_shape() -> None:
    one, other = params(seed=1, prompt="a", num_images=3), params(seed=2, prompt="b", num_inference_steps=9)
    assert one.shape == other.shape == (64, 64, 64)
    assert len({one.shape, params(width=128).shape, params(max_sequence_length=32).shape}) == 3


@pytest.mark.parametrize(("num_images", "true_cfg_scale", "rows"), [(1, 1.0, 1), (3, 1.0, 3), (1, 1.5, 2), (3, 4.0, 6)])
def test_a_step_has_one_row_per_image_and_transformer_call(num_images: int, true_cfg_scale: float, rows: int) -> None:
    asked = params(num_images=num_images, true_cfg_scale=true_cfg_scale)
    assert asked.rows == rows
    assert asked.work == pytest.approx(64 * 64 / 1e6 * 4 * rows)
