"""A model's limits: what it cannot do is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from safelight.errors import InvalidRequest, InvalidSize, InvalidValue, UnsupportedValue
from safelight.model_card import Family, ModelCard
from safelight.params import SourceImage
from tests.unit.running_front import params

CARD = ModelCard(id="test/tiny", min_size=32, max_size=128, max_num_inference_steps=10, max_sequence_length=64)
KONTEXT = ModelCard.of_family(Family.KONTEXT, "test/kontext")
FILL = ModelCard.of_family(Family.FILL, "test/fill")
MASKED: dict[str, Any] = {"width": 256, "height": 256, "source": SourceImage("a", mask_file="b")}
SCHNELL = ModelCard(id="test/schnell", min_size=32, default_guidance_scale=None)


@pytest.mark.parametrize(
    ("card", "members", "kind", "param"),
    [
        (CARD, {"width": 16}, InvalidSize, "width"),
        (CARD, {"height": 144}, InvalidSize, "height"),
        (CARD, {"num_inference_steps": 11}, InvalidValue, "num_inference_steps"),
        (CARD, {"max_sequence_length": 65}, InvalidValue, "max_sequence_length"),
        (SCHNELL, {"guidance_scale": 3.5}, UnsupportedValue, "guidance_scale"),
        (SCHNELL, {"guidance_scale": 0.0}, UnsupportedValue, "guidance_scale"),
        (CARD, {"guidance_scale": 31.0}, InvalidValue, "guidance_scale"),
        (FILL, {}, UnsupportedValue, "image"),
        (FILL, {"source": SourceImage("a")}, UnsupportedValue, "mask"),
        (FILL, MASKED | {"true_cfg_scale": 2.0}, UnsupportedValue, "true_cfg_scale"),
        (KONTEXT, {"source": SourceImage("a")}, UnsupportedValue, "image"),
        (KONTEXT, MASKED, UnsupportedValue, "mask"),
    ],
)
def test_beyond_the_models_limits_is_refused_with_param_and_model(
    card: ModelCard, members: dict[str, Any], kind: type[InvalidRequest], param: str
) -> None:
    with pytest.raises(kind) as caught:
        card.check(params(**members))
    assert caught.value.param == param
    assert card.id in caught.value.message


@pytest.mark.parametrize(
    ("card", "members"),
    [
        (CARD, {"width": 32, "height": 128}),
        (CARD, {"num_inference_steps": 10, "max_sequence_length": 64, "guidance_scale": 0.0}),
        (SCHNELL, {"guidance_scale": None}),
        (FILL, MASKED | {"guidance_scale": 100.0, "prompt": ""}),
        (KONTEXT, {"width": 256, "height": 256}),
        (KONTEXT, {"width": 256, "height": 2048, "source": SourceImage("a", reference_size=(1024, 1024))}),
    ],
)
def test_the_limits_themselves_are_drawn(card: ModelCard, members: dict[str, Any]) -> None:
    card.check(params(**members))


def test_guidance_is_what_dev_has_and_schnell_has_not() -> None:
    assert CARD.has_guidance
    assert not SCHNELL.has_guidance


def test_a_row_has_the_tokens_of_the_picture_and_of_the_text() -> None:
    assert CARD.tokens(params(height=32)) == 4 * 2 + 64
    asked = params(width=1024, height=1024, max_sequence_length=512)
    assert ModelCard(id="black-forest-labs/FLUX.1-dev").tokens(asked) == 4096 + 512


def test_a_reference_has_tokens_and_costs_work_like_the_picture() -> None:
    edit = params(width=256, height=256, source=SourceImage("a", reference_size=(672, 1568)))
    assert KONTEXT.tokens(edit) == 16 * 16 + 42 * 98 + 64
    assert edit.work == pytest.approx((256 * 256 + 672 * 1568) / 1e6 * 4)
    assert len({edit.shape, params(width=256, height=256).shape}) == 2


@pytest.mark.parametrize(
    ("size", "expected"), [((64, 64), (1024, 1024)), ((300, 170), (1392, 752)), ((1, 900), (672, 1568))]
)
def test_a_picture_to_edit_is_brought_into_the_nearest_shape(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert KONTEXT.reference_size(*size) == expected
