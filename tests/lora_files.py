"""Random LoRA adapters for any model, written as the projects that train them write them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from safelight.checkpoint import open_checkpoint
from safelight.lora.layers import Size, flux_layers

Matrices = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Down (rank, in) and up (out, rank) of each layer."""


def layers_of(checkpoint: Path) -> dict[str, Size]:
    """Of the transformer in a checkpoint's folder."""
    return flux_layers(json.loads((checkpoint / "transformer" / "config.json").read_text()))


def random_matrices(layers: Mapping[str, Size], rank: int, seed: int, strength: float = 0.3) -> Matrices:
    """Strong enough to change every picture."""
    torch.manual_seed(seed)
    return {
        name: (
            torch.randn(rank, size.in_features) * size.in_features**-0.5,
            torch.randn(size.out_features, rank) * strength * rank**-0.5,
        )
        for name, size in layers.items()
    }


def write_diffusers(path: Path, matrices: Matrices, metadata: dict[str, Any] | None = None) -> Path:
    """As ``FluxPipeline.save_lora_weights``."""
    return _write(path, _paired(matrices, "transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight"), metadata)


def write_peft(path: Path, matrices: Matrices) -> Path:
    """As ``PeftModel.save_pretrained``."""
    names = "base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"
    return _write(path, _paired(matrices, *names))


def write_kohya(path: Path, matrices: Matrices, text_encoder: Collection[str] = ()) -> Path:
    """As sd-scripts, for diffusers' layers, with alpha at half the rank; some may be of a text encoder."""
    tensors: dict[str, torch.Tensor] = {}
    for name, (down, up) in matrices.items():
        written = ("lora_te1_" if name in text_encoder else "lora_transformer_") + name.replace(".", "_")
        tensors[f"{written}.lora_down.weight"], tensors[f"{written}.lora_up.weight"] = down, up * 2
        tensors[f"{written}.alpha"] = torch.tensor(len(down) / 2)
    return _write(path, tensors)


def write_fused(path: Path, matrices: Matrices, prefix: str = "lora_unet_", separator: str = "_") -> Path:
    """As sd-scripts or ComfyUI for Black Forest Labs' layers: queries, keys and values are one, with one down matrix.

    ``matrices`` must have the same down matrix for all layers that are one there; layers of other kinds are left out.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, layers in fused_layers(matrices).items():
        written = prefix + name.replace(".", separator)
        tensors[f"{written}.lora_down.weight"] = matrices[layers[0]][0]
        tensors[f"{written}.lora_up.weight"] = torch.cat([matrices[layer][1] for layer in layers])
    return _write(path, tensors)


def fused_layers(names: Iterable[str]) -> dict[str, list[str]]:
    """Black Forest Labs' names of those that have diffusers' names, each with its parts in order."""
    found: dict[str, list[str]] = {}
    for name in names:
        kind, _, rest = name.partition("transformer_blocks.")
        index, _, layer = rest.partition(".")
        double = {
            "norm1.linear": "img_mod.lin",
            "norm1_context.linear": "txt_mod.lin",
            **{f"attn.to_{part}": "img_attn.qkv" for part in "qkv"},
            **{f"attn.add_{part}_proj": "txt_attn.qkv" for part in "qkv"},
            "attn.to_out.0": "img_attn.proj",
            "attn.to_add_out": "txt_attn.proj",
            "ff.net.0.proj": "img_mlp.0",
            "ff.net.2": "img_mlp.2",
            "ff_context.net.0.proj": "txt_mlp.0",
            "ff_context.net.2": "txt_mlp.2",
        }
        single = {
            "norm.linear": "modulation.lin",
            **{f"attn.to_{part}": "linear1" for part in "qkv"},
            "proj_mlp": "linear1",
            "proj_out": "linear2",
        }
        if rest:
            block = f"single_blocks.{index}.{single[layer]}" if kind else f"double_blocks.{index}.{double[layer]}"
            found.setdefault(block, []).append(name)
    return {block: sorted(layers, key=_in_order) for block, layers in found.items()}


def _in_order(layer: str) -> int:
    parts = ("q_proj", "to_q", "k_proj", "to_k", "v_proj", "to_v", "proj_mlp")
    return next((place for place, part in enumerate(parts) if layer.endswith(part)), 0)


def _paired(matrices: Matrices, down_name: str, up_name: str) -> dict[str, torch.Tensor]:
    downs = {down_name.format(name): down for name, (down, _) in matrices.items()}
    return downs | {up_name.format(name): up for name, (_, up) in matrices.items()}


def _write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, Any] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    words = {"format": "pt"} | ({"lora_adapter_metadata": json.dumps(metadata)} if metadata else {})
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path, words)
    return path


def embedded_layers() -> dict[str, Size]:
    """Of ``safelight/shapes``."""
    return layers_of(open_checkpoint("safelight/shapes").path)
