"""Adapters of the formats that diffusers can convert, at FLUX.1's real size: what we read is what it makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from safelight.engine.flux.adapters import load_adapter
from safelight.lora.adapter_file import read_adapter
from safelight.lora.layers import flux_layers

FLUX_1_DEV = flux_layers({"guidance_embeds": True})
WIDTH = 3072

Matrices = dict[str, torch.Tensor]


def _pair(name: str, in_features: int, out_features: int, *, words: tuple[str, str], alpha: float | None) -> Matrices:
    rank = 2
    made = {
        f"{name}{words[0]}": torch.randn(rank, in_features),
        f"{name}{words[1]}": torch.randn(out_features, rank),
    }
    return made if alpha is None else made | {f"{name}.alpha": torch.tensor(alpha)}


KOHYA = {
    "double_blocks_0_img_attn_qkv": (WIDTH, 3 * WIDTH),
    "double_blocks_18_txt_attn_qkv": (WIDTH, 3 * WIDTH),
    "double_blocks_0_img_attn_proj": (WIDTH, WIDTH),
    "double_blocks_0_txt_attn_proj": (WIDTH, WIDTH),
    "double_blocks_0_img_mlp_0": (WIDTH, 4 * WIDTH),
    "double_blocks_0_txt_mlp_2": (4 * WIDTH, WIDTH),
    "double_blocks_0_img_mod_lin": (WIDTH, 6 * WIDTH),
    "double_blocks_0_txt_mod_lin": (WIDTH, 6 * WIDTH),
    "single_blocks_37_linear1": (WIDTH, 7 * WIDTH),
    "single_blocks_0_linear2": (5 * WIDTH, WIDTH),
    "single_blocks_0_modulation_lin": (WIDTH, 3 * WIDTH),
    "img_in": (64, WIDTH),
    "txt_in": (4096, WIDTH),
    "time_in_in_layer": (256, WIDTH),
    "vector_in_out_layer": (WIDTH, WIDTH),
    "guidance_in_in_layer": (256, WIDTH),
    "final_layer_linear": (WIDTH, 64),
    "final_layer_adaLN_modulation_1": (WIDTH, 2 * WIDTH),
}
XLABS = {
    "double_blocks.0.processor.qkv_lora1": (WIDTH, 3 * WIDTH),
    "double_blocks.0.processor.qkv_lora2": (WIDTH, 3 * WIDTH),
    "double_blocks.0.processor.proj_lora1": (WIDTH, WIDTH),
    "double_blocks.0.processor.proj_lora2": (WIDTH, WIDTH),
    "single_blocks.0.processor.qkv_lora": (WIDTH, 3 * WIDTH),
    "single_blocks.0.processor.proj_lora": (5 * WIDTH, WIDTH),
}
MIXTURE = {
    "transformer_blocks_0_attn_to_q": (WIDTH, WIDTH),
    "transformer_blocks_0_attn_add_k_proj": (WIDTH, WIDTH),
    "single_transformer_blocks_1_attn_to_v": (WIDTH, WIDTH),
    "context_embedder": (4096, WIDTH),
    "time_text_embed_guidance_embedder_linear_1": (256, WIDTH),
    "norm_out_linear": (WIDTH, 2 * WIDTH),
    "proj_out": (WIDTH, 64),
}


def _kohya() -> Matrices:
    words = ".lora_down.weight", ".lora_up.weight"
    made: Matrices = {}
    for name, sizes in KOHYA.items():
        # diffusers takes no notice of the last layer's alpha
        alpha = None if name.startswith("final") else 0.5
        made |= _pair(f"lora_unet_{name}", *sizes, words=words, alpha=alpha)
    return made


def _xlabs() -> Matrices:
    words = ".down.weight", ".up.weight"
    return {k: v for name, sizes in XLABS.items() for k, v in _pair(name, *sizes, words=words, alpha=None).items()}


def _mixture() -> Matrices:
    words = ".lora_down.weight", ".lora_up.weight"
    made: Matrices = {}
    for name, sizes in MIXTURE.items():
        made |= _pair(f"lora_transformer_{name}", *sizes, words=words, alpha=4.0)
    return made


@pytest.mark.parametrize("make", [_kohya, _xlabs, _mixture], ids=["kohya", "xlabs", "lora_transformer"])
def test_what_is_read_is_what_diffusers_converts(make: Callable[[], Matrices], tmp_path: Path) -> None:
    from diffusers.loaders import FluxLoraLoaderMixin

    torch.manual_seed(0)
    tensors = make()
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    adapter = load_adapter(read_adapter("x", path), FLUX_1_DEV)
    converted = FluxLoraLoaderMixin.lora_state_dict(dict(tensors))
    expected = {name.removeprefix("transformer."): value for name, value in converted.items()}
    assert {f"{layer}.lora_{half}.weight" for layer in adapter.changes for half in "AB"} == set(expected)
    for layer, change in adapter.changes.items():
        product = expected[f"{layer}.lora_B.weight"][:64] @ expected[f"{layer}.lora_A.weight"][:, :64]
        ours = change.factor * change.up[:64] @ change.down[:, :64]
        torch.testing.assert_close(ours, product)
