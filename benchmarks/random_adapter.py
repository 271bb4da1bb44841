"""A LoRA adapter of random numbers for every linear layer of attention and MLP, as diffusers writes one."""

from __future__ import annotations

from pathlib import Path

import torch

from safelight.checkpoint import Checkpoint
from safelight.lora.layers import Size, checkpoint_layers

_UP_DEVIATION = 0.02


def write_adapter(path: Path, checkpoint: Checkpoint, rank: int, seed: int) -> Path:
    """In bfloat16; it changes pictures without breaking them."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, size in _block_layers(checkpoint).items():
        down = torch.randn(rank, size.in_features, generator=generator) * size.in_features**-0.5
        up = torch.randn(size.out_features, rank, generator=generator) * _UP_DEVIATION
        tensors[f"transformer.{name}.lora_A.weight"] = down.bfloat16()
        tensors[f"transformer.{name}.lora_B.weight"] = up.bfloat16()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"format": "pt"})
    return path


def _block_layers(checkpoint: Checkpoint) -> dict[str, Size]:
    """Without the modulations, whose layers belong to norms."""
    layers = checkpoint_layers(checkpoint).items()
    return {name: size for name, size in layers if "transformer_blocks." in name and ".norm" not in name}
