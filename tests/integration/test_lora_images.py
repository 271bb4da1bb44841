"""Pictures with LoRA adapters are those of diffusers, in every format, and those without stay what they are."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from safelight.checkpoint import open_checkpoint
from safelight.engine.drawing_job import Generation
from safelight.engine.model_manager import ModelManager
from safelight.engine.options import EngineOptions
from safelight.errors import LoraInvalid
from safelight.lora.layers import Size, checkpoint_layers
from safelight.params import GenerationParams, LoraUse
from tests import single_files
from tests.lora_files import (
    fused_layers,
    layers_of,
    random_matrices,
    write_diffusers,
    write_fused,
    write_kohya,
    write_peft,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch_dtype"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),  # of PEFT, for a second adapter
]

SOFT, LOUD = LoraUse("soft", 0.7), LoraUse("loud", -1.3)


@pytest.fixture(scope="module")
def layers(tiny_checkpoint: Path) -> dict[str, Size]:
    return layers_of(tiny_checkpoint)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, layers: dict[str, Size]) -> Path:
    """Two adapters: one for every layer, one for a few, of a larger rank and an alpha of its own."""
    folder = tmp_path_factory.mktemp("loras")
    write_diffusers(folder / "soft.safetensors", random_matrices(layers, 4, seed=1))
    few = {name: size for name, size in layers.items() if "attn" in name}
    loud = random_matrices(few, 20, seed=2)
    settings = {"r": 20, "lora_alpha": 10, "target_modules": list(few)}
    write_diffusers(
        folder / "loud.safetensors", loud, {f"transformer.{name}": value for name, value in settings.items()}
    )
    return folder


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path, folder: Path) -> Any:
    """diffusers' own, with both adapters loaded."""
    from diffusers import FluxPipeline

    made = FluxPipeline.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    for name in ("soft", "loud"):
        made.load_lora_weights(folder, weight_name=f"{name}.safetensors", adapter_name=name)
    return made


@pytest.fixture(scope="module")
def manager(tiny_checkpoint: Path, folder: Path) -> Iterator[ModelManager]:
    """Ours, with the same adapters to choose from."""
    made = ModelManager()
    options = EngineOptions(loras_dir=str(folder), lora_cache_mb=1)
    made.executor.submit(torch.set_num_threads, 1).result()  # several would only wait for each other at this size
    asyncio.run(made.load_model(open_checkpoint(str(tiny_checkpoint)), "cpu", options))
    assert made._batch is not None
    made._batch.max_tokens = 8 * made._batch.model.tokens(_params())
    yield made
    asyncio.run(made.cleanup())


def _params(*loras: LoraUse, **changes: Any) -> GenerationParams:
    defaults: dict[str, Any] = {
        "prompt": "a red circle",
        "width": 64,
        "height": 48,
        "num_inference_steps": 3,
        "guidance_scale": 3.5,
        "max_sequence_length": 8,
        "seed": 1,
    }
    return GenerationParams(loras=loras, **(defaults | changes))


def _drawn(manager: ModelManager, *jobs: GenerationParams) -> list[Generation]:
    """All at once."""

    async def run() -> list[Generation]:
        return await asyncio.gather(*(manager.generate_image(job) for job in jobs))

    return asyncio.run(run())


def _digest(manager: ModelManager, *loras: LoraUse) -> str:
    (drawn,) = _drawn(manager, _params(*loras))
    return hashlib.sha256(np.asarray(drawn.images[0]).tobytes()).hexdigest()


def _reference(pipeline: Any, params: GenerationParams) -> np.ndarray[Any, Any]:
    if params.loras:
        pipeline.enable_lora()
        pipeline.set_adapters([lora.name for lora in params.loras], [lora.scale for lora in params.loras])
    else:
        pipeline.disable_lora()
    image = pipeline(
        params.prompt,
        width=params.width,
        height=params.height,
        num_inference_steps=params.num_inference_steps,
        guidance_scale=params.guidance_scale,
        true_cfg_scale=params.true_cfg_scale,
        negative_prompt=params.negative_prompt,
        max_sequence_length=params.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(params.seed),
    ).images[0]
    return np.asarray(image, int)


MIXED = [
    _params(),
    _params(SOFT),
    _params(LOUD, num_inference_steps=5),
    _params(SOFT, LOUD, seed=3),
    _params(seed=4, num_inference_steps=2),
    _params(SOFT, LOUD, seed=5, num_inference_steps=4, true_cfg_scale=2.0, negative_prompt="blue"),
    _params(LoraUse("soft", 0.3), seed=6),
]


def test_jobs_with_and_without_adapters_at_once_make_the_pictures_of_diffusers(
    manager: ModelManager, pipeline: Any
) -> None:
    pictures = [np.asarray(generation.images[0], int) for generation in _drawn(manager, *MIXED)]
    for params, picture in zip(MIXED, pictures, strict=True):
        assert np.abs(picture - _reference(pipeline, params)).max() <= 1, params.loras
    assert np.abs(pictures[0] - pictures[1]).max() > 20  # the adapters really act


def test_a_picture_without_adapters_is_the_same_to_the_bit_after_any_sequence_of_them(manager: ModelManager) -> None:
    canary = _digest(manager)
    for loras in ((SOFT,), (LOUD,), (SOFT, LOUD), (LOUD, SOFT), (LoraUse("soft", 0.0),)):
        with_adapters = _digest(manager, *loras)
        assert _digest(manager) == canary
        assert _digest(manager, *loras) == with_adapters
    assert _digest(manager, LoraUse("soft", 0.0), LoraUse("loud", 0.0)) == canary


def test_every_format_makes_the_same_picture(manager: ModelManager, folder: Path, layers: dict[str, Size]) -> None:
    matrices = random_matrices(layers, 4, seed=7)
    for parts in fused_layers(layers).values():  # one down matrix, as where they are one layer
        for layer in parts:
            matrices[layer] = matrices[parts[0]][0], matrices[layer][1]
    in_blocks = {name: pair for name, pair in matrices.items() if "transformer_blocks" in name}
    write_diffusers(folder / "whole-diffusers.safetensors", matrices)
    write_peft(folder / "whole-peft.safetensors", matrices)
    write_kohya(folder / "whole-kohya.safetensors", matrices)
    write_diffusers(folder / "blocks-diffusers.safetensors", in_blocks)
    write_fused(folder / "blocks-kohya.safetensors", in_blocks)
    write_fused(folder / "blocks-comfy.safetensors", in_blocks, "diffusion_model.", ".")
    digests = {path.stem: _digest(manager, LoraUse(path.stem)) for path in folder.glob("*-*.safetensors")}
    assert len(digests) == 6
    assert len({digest for name, digest in digests.items() if name.startswith("whole")}) == 1
    assert len({digest for name, digest in digests.items() if name.startswith("blocks")}) == 1
    assert len(set(digests.values())) == 2


def test_a_model_of_a_single_file_takes_the_same_adapters(
    manager: ModelManager, tiny_checkpoint: Path, folder: Path, layers: dict[str, Size], tmp_path: Path
) -> None:
    file = single_files.save(
        tmp_path / "one.safetensors", single_files.as_black_forest_labs(single_files.read_transformer(tiny_checkpoint))
    )
    checkpoint = open_checkpoint(str(file), None, str(tiny_checkpoint))
    assert checkpoint_layers(checkpoint) == layers

    async def draw() -> Generation:
        async with ModelManager() as other:
            await other.load_model(checkpoint, "cpu", EngineOptions(loras_dir=str(folder)))
            return await other.generate_image(_params(SOFT, LOUD))

    drawn = np.asarray(asyncio.run(draw()).images[0], int)
    (expected,) = _drawn(manager, _params(SOFT, LOUD))
    assert np.abs(drawn - np.asarray(expected.images[0], int)).max() <= 1


BAD_VALUES: dict[str, tuple[int | None, float, str]] = {
    "NaN": (0, float("nan"), "NaN"),
    "infinity": (1, float("inf"), "infinity"),
    "alpha": (None, 1e30, "alpha 1e\\+30"),
}
"""Which matrix of a layer gets it, none for alpha; the value; what the sentence says."""


@pytest.mark.parametrize("kind", BAD_VALUES)
def test_values_that_no_adapter_has_end_their_job_only(
    manager: ModelManager, folder: Path, layers: dict[str, Size], kind: str
) -> None:
    member, value, sentence = BAD_VALUES[kind]
    canary = _digest(manager)
    matrices = random_matrices(layers, 4, seed=1)
    if member is None:
        write_diffusers(folder / "bad.safetensors", matrices, {"transformer.lora_alpha": value})
    else:
        matrices["proj_out"][member].fill_(value)
        write_diffusers(folder / "bad.safetensors", matrices)
    with pytest.raises(LoraInvalid, match=sentence):
        _drawn(manager, _params(LoraUse("bad")))
    assert _digest(manager) == canary


def test_an_adapter_that_is_replaced_meanwhile_changes_no_picture_under_way(
    manager: ModelManager, folder: Path, layers: dict[str, Size]
) -> None:
    write_diffusers(folder / "new.safetensors", random_matrices(layers, 4, seed=12))
    after = _digest(manager, LoraUse("new"))
    write_diffusers(folder / "once.safetensors", random_matrices(layers, 4, seed=11))
    before = _digest(manager, LoraUse("once"))

    def replace(step: int, _total: int) -> None:
        if step == 1:
            shutil.copy(folder / "new.safetensors", folder / "once.safetensors")

    drawn = asyncio.run(manager.generate_image(_params(LoraUse("once")), on_step=replace))
    assert hashlib.sha256(np.asarray(drawn.images[0]).tobytes()).hexdigest() == before
    assert _digest(manager, LoraUse("once")) == after != before


def test_fifty_adapters_go_through_a_cache_of_one_megabyte(
    manager: ModelManager, folder: Path, layers: dict[str, Size]
) -> None:
    for number in range(10):
        write_diffusers(folder / f"many {number}.safetensors", random_matrices(layers, 40, seed=number))
    assert manager._batch is not None
    model: Any = manager._batch.model
    cache, used = model.adapters, []
    for turn in range(50):
        _digest(manager, LoraUse(f"many {turn % 10}", scale=turn / 10))
        assert 0 < cache.size_bytes <= 1_000_000
        used.append(psutil.Process(os.getpid()).memory_info().rss)
    assert max(used[10:]) - used[5] < 10 * 1024**2
