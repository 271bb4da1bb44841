"""The embedded model draws what the prompt says, on combinations that its training never showed."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.check_shapes import PROPERTIES, Setting, held_out_scenes, load_pipeline, measure
from safelight.checkpoint import open_checkpoint
from safelight.config import EMBEDDED_MODEL

_COUNT = 60
_REQUIRED = {
    "single": {"background": 0.99, "colour": 0.97, "shape": 0.92, "size": 0.95, "position": 0.95},
    "pair": dict.fromkeys(PROPERTIES, 0.8),
}


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    checkpoint = open_checkpoint(EMBEDDED_MODEL)
    card = checkpoint.card
    assert card.default_guidance_scale is not None
    setting = Setting(card.default_num_inference_steps, card.default_guidance_scale)
    return measure(load_pipeline(checkpoint), checkpoint, held_out_scenes(_COUNT, seed=11), setting)


@pytest.mark.parametrize("kind", ["single", "pair"])
@pytest.mark.parametrize("name", PROPERTIES)
def test_pictures_are_as_the_prompt_says(measured: dict[str, Any], kind: str, name: str) -> None:
    assert measured[kind][name] >= _REQUIRED[kind][name]
