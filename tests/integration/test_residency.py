"""Weights that visit the device draw what resident ones draw; and a VAE that runs out of memory goes on in tiles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safelight.checkpoint import open_checkpoint
from safelight.config import EMBEDDED_MODEL
from safelight.engine.flux.adapted_forward import AdaptedForward
from safelight.engine.flux.model import FluxModel
from safelight.engine.flux.residency import HostResidency, Residency
from safelight.engine.flux.tiles import TILE_PIXELS
from safelight.lora.directory import AdapterDirectories
from safelight.params import GenerationParams, LoraUse
from tests.lora_files import embedded_layers, random_matrices, write_diffusers

pytestmark = pytest.mark.filterwarnings("ignore:.*torch_dtype")
CPU = torch.device("cpu")


@pytest.fixture
def make_pipeline() -> Iterator[Any]:
    from diffusers import FluxPipeline

    path = open_checkpoint(EMBEDDED_MODEL).path
    yield lambda: FluxPipeline.from_pretrained(path, dtype=torch.float32)


def _params(**changed: Any) -> GenerationParams:
    asked: dict[str, Any] = {
        "prompt": "a red circle on a blue background",
        "width": 128,
        "height": 128,
        "num_inference_steps": 3,
        "guidance_scale": 3.5,
        "max_sequence_length": 24,
        "seed": 5,
    }
    return GenerationParams(**asked | changed)


def _drawn(model: FluxModel, params: GenerationParams) -> np.ndarray[Any, Any]:
    (drawing,) = model.begin(params, None)
    while not drawing.is_complete:
        model.step([drawing])
    return np.asarray(model.decode(drawing).picture())


@pytest.mark.parametrize("streams_blocks", [False, True])
def test_what_visits_draws_the_same(streams_blocks: bool, make_pipeline: Any, tmp_path: Path) -> None:
    write_diffusers(tmp_path / "all.safetensors", random_matrices(embedded_layers(), 4, seed=1))
    loras = AdapterDirectories([tmp_path])
    resident = FluxModel(make_pipeline(), Residency(CPU), loras=loras)
    visiting = FluxModel(make_pipeline(), HostResidency(CPU, streams_blocks=streams_blocks), loras=loras)
    adapted = _params(loras=(LoraUse("all"),))
    for params in (_params(), adapted, _params(prompt="a green star", seed=6), _params(true_cfg_scale=2.0), adapted):
        assert np.array_equal(_drawn(visiting, params), _drawn(resident, params))


def test_what_is_streamed_lies_in_two_slots(make_pipeline: Any) -> None:
    pipeline = make_pipeline()
    blocks = [*pipeline.transformer.transformer_blocks, *pipeline.transformer.single_transformer_blocks]
    whole_bytes, largest_bytes = sum(map(_linear_bytes, blocks)), max(map(_linear_bytes, blocks))
    model = FluxModel(pipeline, HostResidency(CPU, streams_blocks=True))
    layers = list(model._transformer.layers())
    memory = {layer.weight.untyped_storage().data_ptr(): layer.weight.untyped_storage().nbytes() for layer in layers}
    assert sum(memory.values()) < 2.2 * largest_bytes < 0.5 * whole_bytes
    assert sum(map(_linear_bytes, blocks)) < 0.01 * whole_bytes, "the modules hold nothing any more"


def _linear_bytes(block: torch.nn.Module) -> int:
    """Of the weights that work at every step."""
    linears = [(name, part) for name, part in block.named_modules() if isinstance(part, torch.nn.Linear)]
    return sum(part.weight.numel() * part.weight.element_size() for name, part in linears if "norm" not in name)


def test_a_vae_that_runs_out_of_memory_goes_on_in_tiles(
    make_pipeline: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = make_pipeline()
    model = FluxModel(pipeline)
    size, limit = TILE_PIXELS + 128, TILE_PIXELS // pipeline.vae_scale_factor
    params = _params(width=size, height=size, num_inference_steps=1)
    whole = _drawn(model, params).astype(int)
    decode = pipeline.vae.decoder.forward
    sizes: list[tuple[int, ...]] = []

    def narrow(latents: torch.Tensor) -> Any:
        sizes.append(tuple(latents.shape[2:]))
        if max(sizes[-1]) > limit:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return decode(latents)

    monkeypatch.setattr(pipeline.vae.decoder, "forward", narrow)
    tiled = _drawn(model, params).astype(int)
    assert abs(tiled - whole).mean() < 4
    assert "too small to decode" in caplog.text
    assert len(sizes) > 4 and [size for size in sizes if max(size) > limit] == sizes[:1]
    _drawn(model, params)
    assert len([size for size in sizes if max(size) > limit]) == 1, "it does not try in vain again"


def test_another_failure_of_the_vae_is_not_hidden(make_pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = make_pipeline()
    model = FluxModel(pipeline)

    def broken(_: torch.Tensor) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(pipeline.vae.decoder, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        _drawn(model, _params())
    assert not pipeline.vae.use_tiling


def test_adapters_of_another_kind_make_room_when_memory_lacks(
    make_pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in (4, 20):
        matrices = random_matrices(embedded_layers(), rank, seed=rank)
        write_diffusers(tmp_path / f"rank {rank}.safetensors", matrices)
    model = FluxModel(make_pipeline(), Residency(CPU), loras=AdapterDirectories([tmp_path]), lora_cache_bytes=10**9)
    small, large = (_params(loras=(LoraUse(f"rank {rank}"),)) for rank in (4, 20))
    expected = [_drawn(model, params) for params in (_params(), large)]
    made = FluxModel(make_pipeline(), Residency(CPU), loras=AdapterDirectories([tmp_path]), lora_cache_bytes=10**9)
    _drawn(made, small)
    empty, failures = AdaptedForward._empty, iter([RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")])

    def fail_once(forward: AdaptedForward, *args: Any) -> Any:
        for failure in failures:
            raise failure
        return empty(forward, *args)

    monkeypatch.setattr(AdaptedForward, "_empty", fail_once)
    assert np.array_equal(_drawn(made, large), expected[1])
    assert len(made._forward._layouts) == 1, "the first one has made room"
    assert np.array_equal(_drawn(made, _params()), expected[0])
