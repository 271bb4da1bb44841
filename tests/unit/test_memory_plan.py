"""Where the parts of a model lie, by how much memory is free: FLUX.1's own sizes, a device that is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import nn

from benchmarks.random_checkpoint import FLUX_DEV
from safelight.checkpoint import Checkpoint, Component
from safelight.engine import memory_plan, options
from safelight.engine.memory_plan import MemoryMode, plan_memory, plan_patiently
from safelight.engine.options import EngineOptions, NumberFormat
from safelight.engine.weight_counts import WeightCounts
from safelight.errors import DeviceUnavailable, NotEnoughMemory
from safelight.lora.layers import Size, checkpoint_layers
from safelight.model_card import ModelCard

COUNTS = {
    "text_encoder": 123_060_480,
    "text_encoder_2": 4_762_310_656,
    "transformer": 11_901_408_320,
    "vae": 83_819_683,
}
FP8 = NumberFormat("bfloat16", is_float8=True)
BF16 = NumberFormat("bfloat16")


@pytest.fixture
def flux() -> Checkpoint:
    parts = [
        Component(name, "", "", count * 2, "BF16", weight_count=count, config=FLUX_DEV.get(name))
        for name, count in COUNTS.items()
    ]
    return Checkpoint(Path(), tuple(parts), ModelCard(id="FLUX.1-dev"))


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it with the gigabytes that are free on the device and on the host, whether the device has fp8, and how many
    it has in all.
    """

    def set_free(device_gb: float, host_gb: float = 64, *, has_float8: bool = True, all_gb: float = 0) -> None:
        monkeypatch.setattr(
            memory_plan, "_free_and_all_bytes", lambda _: (device_gb * 1e9, (all_gb or device_gb) * 1e9)
        )
        monkeypatch.setattr(memory_plan, "_host_free_bytes", lambda: host_gb * 1e9)
        monkeypatch.setattr(options, "_has_float8", lambda _: has_float8)
        monkeypatch.setattr(options, "_check_float8", lambda _: None)

    return set_free


def _count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_counts_are_those_of_the_real_modules(flux: Checkpoint) -> None:
    from diffusers import FluxTransformer2DModel
    from transformers import T5Config, T5EncoderModel

    with init_empty_weights():
        transformer: Any = FluxTransformer2DModel.from_config(FLUX_DEV["transformer"])
        t5 = T5EncoderModel(T5Config(**FLUX_DEV["text_encoder_2"]))
    counts = WeightCounts.of(flux)
    assert _count(transformer) == COUNTS["transformer"]
    doubles, singles = list(transformer.transformer_blocks), list(transformer.single_transformer_blocks)
    modulations = [module for block in doubles for module in (block.norm1, block.norm1_context)]
    modulations += [block.norm for block in singles]
    assert counts.modulations == pytest.approx(_count(*modulations), rel=1e-3)
    assert counts.largest_modulation == pytest.approx(_count(modulations[0]), rel=1e-3)
    assert counts.blocks == pytest.approx(_count(*doubles, *singles) - _count(*modulations), rel=1e-3)
    assert counts.largest_block == pytest.approx(_count(doubles[0]) - _count(*modulations[:2]), rel=1e-3)
    assert counts.encoder_blocks == pytest.approx(_count(*t5.encoder.block), rel=1e-3)
    assert counts.largest_encoder_block == pytest.approx(_count(t5.encoder.block[0]), rel=1e-3)
    parts = (counts.blocks, counts.modulations, counts.encoder_blocks, counts.others)
    assert sum(parts) == sum(COUNTS.values())


@pytest.mark.parametrize(
    ("device_gb", "has_float8", "mode", "number_format"),
    [
        (80, True, MemoryMode.FULL, BF16),
        (40, False, MemoryMode.FULL, BF16),
        (31, True, MemoryMode.LOW, BF16),
        (23.5, True, MemoryMode.LOW, BF16),  # a 24 GB card
        (16, True, MemoryMode.LOW, FP8),
        (16, False, MemoryMode.OFFLOAD, BF16),
        (8, True, MemoryMode.OFFLOAD, FP8),
    ],
)
def test_auto_takes_the_first_that_fits(
    device_gb: float, has_float8: bool, mode: MemoryMode, number_format: NumberFormat, flux: Checkpoint, free: Any
) -> None:
    free(device_gb, has_float8=has_float8)
    plan = plan_memory(flux, "cuda:0", EngineOptions())
    assert (plan.mode, plan.number_format) == (mode, number_format)
    assert plan.device_bytes <= device_gb * 1e9
    assert bool(plan.hosted) == (mode is not MemoryMode.FULL)


def test_bits_that_were_asked_for_are_kept(flux: Checkpoint, free: Any) -> None:
    free(16)
    assert plan_memory(flux, "cuda:0", EngineOptions(precision="bf16")).mode is MemoryMode.OFFLOAD
    free(80)
    plan = plan_memory(flux, "cuda:0", EngineOptions(precision="fp8", memory="low"))
    assert (plan.mode, plan.number_format) == (MemoryMode.LOW, FP8)


def test_what_does_not_fit_is_refused_with_all_figures(flux: Checkpoint, free: Any) -> None:
    free(2)
    with pytest.raises(NotEnoughMemory) as refused:
        plan_memory(flux, "cuda:0", EngineOptions())
    for part in ("FLUX.1-dev", "in mode full and bfloat16", "in mode offload and fp8", "2.0 GB", "cuda:0"):
        assert part in refused.value.message
    free(8, host_gb=16)  # what is not on the device must lie on the host
    with pytest.raises(NotEnoughMemory, match=r"16\.0 GB of the host's memory"):
        plan_memory(flux, "cuda:0", EngineOptions())
    free(30)
    with pytest.raises(NotEnoughMemory, match="leave --memory"):
        plan_memory(flux, "cuda:0", EngineOptions(memory="full"))


def test_a_cpu_has_all_of_it_at_hand(flux: Checkpoint, free: Any) -> None:
    free(80)
    plan = plan_memory(flux, "cpu", EngineOptions())
    assert (plan.mode, plan.number_format, plan.hosted) == (MemoryMode.FULL, NumberFormat("float32"), frozenset())
    offload = plan_memory(flux, "cpu", EngineOptions(memory="offload"))
    assert (offload.mode, offload.device_bytes, offload.host_bytes) == (MemoryMode.OFFLOAD, plan.device_bytes, 0)
    free(60)
    with pytest.raises(NotEnoughMemory, match="in mode full and float32 on cpu"):
        plan_memory(flux, "cpu", EngineOptions())


def test_a_device_that_is_not_there_is_named(flux: Checkpoint) -> None:
    if torch.cuda.is_available():
        pytest.skip("it is")
    with pytest.raises(DeviceUnavailable, match="cuda:7 is not there"):
        plan_memory(flux, "cuda:7", EngineOptions())


def test_the_docs_have_these_figures(flux: Checkpoint, free: Any) -> None:
    free(1000, host_gb=1000)
    page = (Path(__file__).parents[2] / "docs" / "fit-your-card.md").read_text()
    for mode in MemoryMode:
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{mode}` |") and " GB |" in line]
        for precision in ("bf16", "fp8"):
            plan = plan_memory(flux, "cuda:0", EngineOptions(precision=precision, memory=mode))
            assert f"{plan.device_bytes / 1e9:.1f} GB" in row
            assert not plan.host_bytes or f"{plan.host_bytes / 1e9:.1f} GB" in row


def test_the_largest_adapter_has_its_room(flux: Checkpoint, free: Any, tmp_path: Path) -> None:
    free(80)
    alone = plan_memory(flux, "cuda:0", EngineOptions())
    layers = {name: size for name, size in checkpoint_layers(flux).items() if ".norm" not in name}
    numbers = [_write_adapter_header(tmp_path / f"{rank}.safetensors", layers, rank) for rank in (4, 16)]
    _write_adapter_header(tmp_path / "strange.safetensors", {"transformer_blocks.0.nothing": Size(8, 8)}, 64)
    (tmp_path / "broken.safetensors").write_bytes(b"none")
    plan = plan_memory(flux, "cuda:0", EngineOptions(loras_dir=str(tmp_path)))
    assert plan.device_bytes - alone.device_bytes == numbers[1] * 3 * 2
    free(alone.device_bytes / 1e9)
    assert plan_memory(flux, "cuda:0", EngineOptions()).mode is MemoryMode.FULL
    assert plan_memory(flux, "cuda:0", EngineOptions(loras_dir=str(tmp_path))).mode is MemoryMode.LOW


def _write_adapter_header(path: Path, layers: dict[str, Size], rank: int) -> int:
    """An adapter whose values take no space on the disk; how many numbers it has."""
    entries: dict[str, Any] = {}
    end = 0
    for name, size in layers.items():
        for kind, shape in (("A", [rank, size.in_features]), ("B", [size.out_features, rank])):
            begin, end = end, end + 2 * shape[0] * shape[1]
            entries[f"transformer.{name}.lora_{kind}.weight"] = {
                "dtype": "BF16",
                "shape": shape,
                "data_offsets": [begin, end],
            }
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return end // 2


def test_a_slower_mode_than_the_card_has_says_so(flux: Checkpoint, free: Any) -> None:
    free(23.5)
    assert not plan_memory(flux, "cuda:0", EngineOptions()).note, "there is no more on this card"
    free(30, all_gb=85)
    assert not plan_memory(flux, "cuda:0", EngineOptions(memory="low")).note, "as it was asked for"
    note = plan_memory(flux, "cuda:0", EngineOptions()).note
    for part in ("in mode low and bfloat16", "30.0 of 85.0 GB were free", "in mode full and bfloat16", "load it again"):
        assert part in note


def test_a_limit_makes_a_card_small(flux: Checkpoint, free: Any) -> None:
    free(80)
    plan = plan_memory(flux, "cuda:0", EngineOptions(memory_limit_mb=23_500))
    assert (plan.mode, plan.note) == (MemoryMode.LOW, "")
    with pytest.raises(NotEnoughMemory, match="raise memory_limit_mb"):
        plan_memory(flux, "cuda:0", EngineOptions(memory_limit_mb=1_000))


def test_a_process_that_ends_is_waited_for(flux: Checkpoint, free: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    free(80)
    said = iter([2, 30, 80, 0])  # gigabytes that are free, each time that somebody looks
    monkeypatch.setattr(memory_plan, "_LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(memory_plan, "_free_and_all_bytes", lambda _: (next(said) * 1e9, 80e9))
    assert plan_patiently(flux, "cuda:0", EngineOptions()).mode is MemoryMode.FULL
    assert next(said) == 0
    monkeypatch.setattr(memory_plan, "_PATIENCE_S", 0.0)
    free(30, all_gb=80)
    assert plan_patiently(flux, "cuda:0", EngineOptions()).note
    free(2, all_gb=80)
    with pytest.raises(NotEnoughMemory):
        plan_patiently(flux, "cuda:0", EngineOptions())
