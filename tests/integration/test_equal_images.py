"""Our engine draws what diffusers' own pipelines draw, to 1/255, whatever is asked and whoever shares a step."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from safelight.checkpoint import open_checkpoint
from safelight.config import EMBEDDED_MODEL
from safelight.engine.model_manager import ModelManager
from safelight.engine.options import EngineOptions
from safelight.engine.sources import Source
from safelight.params import GenerationParams, SourceImage

pytestmark = pytest.mark.filterwarnings("ignore:.*torch_dtype")


def _params(**changes: Any) -> GenerationParams:
    defaults: dict[str, Any] = {
        "prompt": "a large red circle on a blue background",
        "width": 128,
        "height": 128,
        "num_inference_steps": 4,
        "guidance_scale": 3.5,
        "max_sequence_length": 24,
        "seed": 1,
    }
    return GenerationParams(**(defaults | changes))


@pytest.fixture(scope="module")
def pipeline() -> Any:
    from diffusers import FluxPipeline

    made = FluxPipeline.from_pretrained(open_checkpoint(EMBEDDED_MODEL).path, dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


def _reference(pipeline: Any, params: GenerationParams, source: Source | None = None) -> list[Image.Image]:
    from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline

    extra: dict[str, Any] = {}
    if source is not None:
        assert params.source is not None
        pipeline = (FluxInpaintPipeline if source.mask else FluxImg2ImgPipeline)(**pipeline.components)
        pipeline.set_progress_bar_config(disable=True)
        extra = {"image": source.image, "strength": params.source.strength}
        extra |= {"mask_image": source.mask} if source.mask else {}
    images = []
    for seed in params.seeds:
        drawn = pipeline(
            params.prompt,
            negative_prompt=params.negative_prompt,
            true_cfg_scale=params.true_cfg_scale,
            width=params.width,
            height=params.height,
            num_inference_steps=params.num_inference_steps,
            guidance_scale=params.guidance_scale,
            max_sequence_length=params.max_sequence_length,
            generator=torch.Generator("cpu").manual_seed(seed),
            **extra,
        ).images[0]
        images.append(source.keep_outside_mask(drawn) if source else drawn)
    return images


def _difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def _drawn(*jobs: GenerationParams, source: Source | None = None, options: EngineOptions | None = None) -> list[Any]:
    """All at once, eight rows a step."""

    async def run() -> list[Any]:
        async with ModelManager() as manager:
            await manager.load_model(open_checkpoint(EMBEDDED_MODEL), "cpu", options or EngineOptions())
            assert manager._batch is not None
            manager._batch.max_tokens = 8 * manager._batch.model.tokens(_params())
            return await asyncio.gather(*(manager.generate_image(job, source=source) for job in jobs))

    return asyncio.run(run())


MIXED = [
    _params(),
    _params(seed=5, num_inference_steps=7, guidance_scale=2.0, prompt="a green star on a white background"),
    _params(seed=9, true_cfg_scale=2.0, negative_prompt="a blue circle"),
    _params(seed=20, num_images=3, guidance_scale=1.0),
    _params(seed=2**40, num_inference_steps=1),
    _params(seed=6, guidance_scale=0.0),
    _params(seed=7, guidance_scale=30.0),
    _params(width=192, height=96),
    _params(width=256, height=256, num_inference_steps=3, max_sequence_length=12),
]


def test_jobs_that_share_steps_make_the_pictures_of_flux_pipeline(pipeline: Any) -> None:
    for params, generation in zip(MIXED, _drawn(*MIXED), strict=True):
        for image, expected in zip(generation.images, _reference(pipeline, params), strict=True):
            assert image.size == expected.size
            assert _difference(image, expected) <= 1


TRUE_CFG = {"negative_prompt": "a red circle", "true_cfg_scale": 2.5, "max_sequence_length": 12}


@pytest.mark.parametrize(
    ("has_mask", "strength", "members"),
    [(False, 0.6, {}), (False, 1.0, TRUE_CFG), (True, 1.0, {}), (True, 0.5, TRUE_CFG)],
)
def test_changes_of_a_picture_are_those_of_diffusers(
    pipeline: Any, has_mask: bool, strength: float, members: dict[str, Any]
) -> None:
    base = _reference(pipeline, _params(seed=3, num_inference_steps=8))[0]
    mask = Image.new("L", base.size, 0)
    mask.paste(255, (0, 0, 64, 128))
    source = Source(base, mask if has_mask else None)
    asked = {
        "prompt": "a yellow star on a black background",
        "source": SourceImage("source", strength),
        "num_images": 2,
    }
    params = _params(**asked | members)
    (generation,) = _drawn(params, source=source)
    for image, expected in zip(generation.images, _reference(pipeline, params, source), strict=True):
        assert _difference(image, expected) <= 1


def test_a_step_cache_leaves_out_steps_and_stays_near(pipeline: Any) -> None:
    """Off, nothing is left out: the other tests here hold that. On, the picture is another, but of the same thing."""
    params = _params(width=256, height=256, num_inference_steps=20)
    (generation,) = _drawn(params, options=EngineOptions(step_cache=2))
    expected = np.asarray(_reference(pipeline, params)[0], float)
    difference = np.abs(np.asarray(generation.images[0], float) - expected)
    assert 0 < difference.mean() < 10
