"""The embedded model draws what the prompt says, on combinations that its training never showed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.check_shapes import PROPERTIES, Setting, held_out_scenes, load_pipeline, measure
from safelight.checkpoint import open_checkpoint
from safelight.config import EMBEDDED_MODEL

_RECORDED = Path(__file__).parents[2] / "benchmarks" / "results" / "shapes_quality.json"
_COUNT = 60
_MARGIN = 0.15
"""A sample of thirty may fall this far below the share that was recorded over hundreds."""


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    checkpoint = open_checkpoint(EMBEDDED_MODEL)
    card = checkpoint.card
    assert card.default_guidance_scale is not None
    setting = Setting(card.default_num_inference_steps, card.default_guidance_scale)
    return measure(load_pipeline(checkpoint), checkpoint, held_out_scenes(_COUNT, seed=11), setting)


@pytest.mark.parametrize("kind", ["single", "pair"])
@pytest.mark.parametrize("name", PROPERTIES)
def test_pictures_are_as_right_as_the_recorded_figures_say(measured: dict[str, Any], kind: str, name: str) -> None:
    recorded = json.loads(_RECORDED.read_text())["results"][0]
    assert recorded["steps"] == measured["steps"] and recorded["guidance_scale"] == measured["guidance_scale"]
    assert measured[kind][name] >= recorded[kind][name] - _MARGIN
