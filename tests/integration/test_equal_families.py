"""Every family of FLUX.1 draws what diffusers' own pipeline for it draws, to 1/255, alone and beside others."""

from __future__ import annotations

import asyncio
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from safelight.checkpoint import Checkpoint, open_checkpoint
from safelight.engine.flux.model import FluxModel
from safelight.engine.model_manager import ModelManager
from safelight.engine.sources import Source, open_source
from safelight.model_card import Family, ModelCard
from safelight.params import GenerationParams, SourceImage
from safelight.server.uploaded_pictures import read_pictures
from tests.checkpoints import LIVELY, edit_json, make_checkpoint
from tests.single_files import as_black_forest_labs, read_transformer, save

pytestmark = pytest.mark.filterwarnings("ignore:.*torch_dtype")

Job = tuple[GenerationParams, Source | None]


def _params(**changes: Any) -> GenerationParams:
    defaults: dict[str, Any] = {
        "prompt": "a red circle on a blue background",
        "width": 64,
        "height": 64,
        "num_inference_steps": 3,
        "guidance_scale": 3.5,
        "max_sequence_length": 16,
        "seed": 1,
    }
    return GenerationParams(**(defaults | changes))


def _picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth, so that it looks like one to a VAE and to a resampling."""
    small = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def _mask(width: int, height: int) -> Image.Image:
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 2 + 3, height - 5))
    return mask


def _pipeline(folder: Path) -> Any:
    import diffusers

    made = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


def _asked(params: GenerationParams, seed: int) -> dict[str, Any]:
    """What all of the pipelines take."""
    return {
        "prompt": params.prompt,
        "width": params.width,
        "height": params.height,
        "num_inference_steps": params.num_inference_steps,
        "guidance_scale": params.guidance_scale or 0.0,
        "max_sequence_length": params.max_sequence_length,
        "generator": torch.Generator("cpu").manual_seed(seed),
    }


def _true_cfg(params: GenerationParams) -> dict[str, Any]:
    return {"negative_prompt": params.negative_prompt, "true_cfg_scale": params.true_cfg_scale}


def _drawn(checkpoint: Checkpoint, jobs: list[Job]) -> list[list[Image.Image]]:
    """All at once, as many rows a step as there are."""

    async def run() -> list[list[Image.Image]]:
        async with ModelManager() as manager:
            await manager.load_model(checkpoint, "cpu")
            assert manager._batch is not None
            manager._batch.max_tokens = 10**6
            work = [manager.generate_image(params, source=source) for params, source in jobs]
            return [generation.images for generation in await asyncio.gather(*work)]

    return asyncio.run(run())


def _assert_equal(found: list[Image.Image], expected: list[Image.Image]) -> None:
    assert [image.size for image in found] == [image.size for image in expected]
    for one, other in zip(found, expected, strict=True):
        difference = np.abs(np.asarray(one, int) - np.asarray(other, int))
        assert difference.max() <= 1
        assert np.asarray(one).std() > 0


# --- FLUX.1-schnell ---------------------------------------------------------------------------------------------------


def test_schnell(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "schnell", guidance_embeds=False, liveliness=LIVELY)
    checkpoint, pipeline = open_checkpoint(str(folder)), _pipeline(folder)
    assert checkpoint.card.family is Family.SCHNELL
    jobs: list[Job] = [
        (_params(guidance_scale=None), None),
        (_params(guidance_scale=None, num_inference_steps=1, num_images=2, seed=4), None),
        (_params(guidance_scale=None, true_cfg_scale=3.0, negative_prompt="a square"), None),
        (_params(guidance_scale=None, width=96, height=32, max_sequence_length=24), None),
    ]
    for (params, _), images in zip(jobs, _drawn(checkpoint, jobs), strict=True):
        expected = [pipeline(**_asked(params, seed), **_true_cfg(params)).images[0] for seed in params.seeds]
        _assert_equal(images, expected)


# --- FLUX.1-Kontext ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kontext(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Any]:
    folder = make_checkpoint(
        tmp_path_factory.mktemp("kontext") / "model", pipeline="FluxKontextPipeline", liveliness=LIVELY
    )
    return open_checkpoint(str(folder)), _pipeline(folder)


def _reference(pipeline: Any, params: GenerationParams, picture: Image.Image | None, **how: Any) -> list[Image.Image]:
    asked = {"image": picture, "max_area": params.width * params.height, **_true_cfg(params), **how}
    return [pipeline(**_asked(params, seed), **asked).images[0] for seed in params.seeds]


def _edit(reference: tuple[int, int], **changes: Any) -> Job:
    return _params(source=SourceImage("source", reference_size=reference), **changes), Source(
        _picture(*reference), None
    )


EDITS: list[Job] = [
    (_params(), None),
    _edit((64, 64)),
    _edit((64, 64), prompt="a blue square", seed=7, num_inference_steps=5, guidance_scale=2.0),
    _edit((64, 64), seed=3, true_cfg_scale=2.5, negative_prompt="a circle"),
    _edit((64, 64), seed=20, num_images=3),
    _edit((96, 32), seed=5),
    _edit((48, 64), width=128, height=32, num_inference_steps=1),
    (_params(width=128, height=64, true_cfg_scale=2.0, negative_prompt="red"), None),
]


def test_kontext_with_and_without_a_picture(kontext: tuple[Checkpoint, Any]) -> None:
    checkpoint, pipeline = kontext
    assert checkpoint.card.family is Family.KONTEXT
    for (params, source), images in zip(EDITS, _drawn(checkpoint, EDITS), strict=True):
        picture = None if source is None else source.image
        _assert_equal(images, _reference(pipeline, params, picture, _auto_resize=False))


def test_a_picture_changes_what_kontext_draws(kontext: tuple[Checkpoint, Any]) -> None:
    (without,), (with_picture,), *_ = _drawn(kontext[0], EDITS[:2])
    assert np.abs(np.asarray(without, int) - np.asarray(with_picture, int)).max() > 10


def test_kontext_is_warmed_up_as_it_is_used(kontext: tuple[Checkpoint, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first edit would pay for what looking at a picture takes the first time."""
    begun: list[tuple[GenerationParams, Source | None]] = []
    begin = FluxModel.begin

    def noted(model: FluxModel, params: GenerationParams, source: Source | None, *rest: Any) -> Any:
        begun.append((params, source))
        return begin(model, params, source, *rest)

    monkeypatch.setattr(FluxModel, "begin", noted)

    async def warm_up() -> None:
        async with ModelManager() as manager:
            await manager.load_model(kontext[0], "cpu")
            await manager.warmup([(256, 256)])

    asyncio.run(warm_up())
    edits = [(params, source) for params, source in begun if source is not None]
    ((params, source),) = edits
    assert (params.width, params.height, params.reference_size) == (256, 256, (1024, 1024))
    assert source is not None and source.image.size == (1024, 1024)


def test_an_upload_becomes_the_reference_that_kontext_was_trained_with(kontext: tuple[Checkpoint, Any]) -> None:
    """All the way from the file that somebody sends: resized as diffusers does it by itself."""
    checkpoint, pipeline = kontext
    picture, file = _picture(300, 170), io.BytesIO()
    picture.save(file, "PNG")
    source, files, size = read_pictures(checkpoint.card, file.getvalue(), None, None, None, mask_is_inverted=False)
    assert source.reference_size == size == (1392, 752)
    params = _params(source=source, num_inference_steps=1)
    ((image,),) = _drawn(checkpoint, [(params, open_source(files[source.file], None))])
    _assert_equal([image], _reference(pipeline, params, picture))


def test_the_sizes_of_references_are_those_of_diffusers() -> None:
    from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

    card = ModelCard.of_family(Family.KONTEXT, "kontext")
    for width, height in [(side, 1000) for side in range(300, 3000, 37)]:
        nearest = min(
            (abs(width / height - across / down), across, down) for across, down in PREFERRED_KONTEXT_RESOLUTIONS
        )
        assert card.reference_size(width, height) == nearest[1:]
    assert {card.reference_size(*size) for size in PREFERRED_KONTEXT_RESOLUTIONS} == set(PREFERRED_KONTEXT_RESOLUTIONS)


# --- FLUX.1-Fill ------------------------------------------------------------------------------------------------------


def _fill(width: int, height: int, strength: float = 1.0, **changes: Any) -> Job:
    params = _params(width=width, height=height, source=SourceImage("source", strength, "mask"), **changes)
    return params, Source(_picture(width, height, seed=width), _mask(width, height))


FILLS = [
    _fill(64, 64, guidance_scale=30.0),
    _fill(64, 64, seed=9, num_inference_steps=5, guidance_scale=4.0, num_images=2),
    _fill(64, 64, 0.6, seed=3, num_inference_steps=6),
    _fill(96, 32, seed=2),
    _fill(32, 64, 0.3, num_inference_steps=1),
]


def test_fill(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "fill", pipeline="FluxFillPipeline", liveliness=LIVELY)
    checkpoint, pipeline = open_checkpoint(str(folder)), _pipeline(folder)
    assert checkpoint.card.family is Family.FILL
    for (params, source), images in zip(FILLS, _drawn(checkpoint, FILLS), strict=True):
        assert source is not None
        pictures = {"image": source.image, "mask_image": source.mask, "strength": params.strength}
        drawn = [pipeline(**_asked(params, seed), **pictures).images[0] for seed in params.seeds]
        _assert_equal(images, [source.keep_outside_mask(image) for image in drawn])


# --- single files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pipeline", "family", "job"),
    [("FluxKontextPipeline", Family.KONTEXT, EDITS[1]), ("FluxFillPipeline", Family.FILL, FILLS[0])],
)
def test_a_single_file_over_a_base_of_dev_draws_as_its_family(
    pipeline: str, family: Family, job: Job, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "whole", pipeline=pipeline, liveliness=LIVELY)
    base = shutil.copytree(folder, tmp_path / "base")
    for weights in (base / "transformer").glob("*.safetensors"):
        weights.unlink()
    edit_json(base / "model_index.json", _class_name="FluxPipeline")
    file = save(tmp_path / f"my-{family}.safetensors", as_black_forest_labs(read_transformer(folder)))
    checkpoint = open_checkpoint(str(file), None, str(base))
    assert (checkpoint.card.family, checkpoint.card.tasks) == (family, ModelCard.of_family(family, "").tasks)
    _assert_equal(_drawn(checkpoint, [job])[0], _drawn(open_checkpoint(str(folder)), [job])[0])


def test_fill_is_warmed_up_without_a_picture(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "fill", pipeline="FluxFillPipeline", liveliness=LIVELY)

    async def run() -> int:
        async with ModelManager() as manager:
            await manager.load_model(open_checkpoint(str(folder)), "cpu")
            await manager.warmup([(64, 64)])
            return manager.batch_tokens

    assert asyncio.run(run()) > 0
