"""A model's limits: what it cannot do is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from safelight.errors import InvalidRequest, InvalidSize, InvalidValue, UnsupportedValue
from safelight.model_card import ModelCard
from tests.unit.running_front import params

CARD = ModelCard(id="test/tiny", min_size=32, max_size=128, max_num_inference_steps=10, max_sequence_length=64)
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
    ],
)
def test_the_limits_themselves_are_drawn(card: ModelCard, members: dict[str, Any]) -> None:
    card.check(params(**members))


def test_guidance_is_what_dev_has_and_schnell_has_not() -> None:
    assert CARD.has_guidance
    assert not SCHNELL.has_guidance


def test_a_row_has_the_tokens_of_the_picture_and_of_the_text() -> None:
    assert CARD.tokens(64, 32, 64) == 4 * 2 + 64
    assert ModelCard(id="black-forest-labs/FLUX.1-dev").tokens(1024, 1024, 512) == 4096 + 512
