"""diffusers' VAE with the kernels of ``vae_kernels`` between its convolutions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from safelight.engine.flux.vae_kernels import add_bias, doubled, norm_silu


class NormSilu(nn.Module):
    """GroupNorm and the SiLU after it."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self._norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return norm_silu(self._norm, x)


class Resnet(nn.Module):
    """A ``ResnetBlock2D`` without time embedding: the biases go with the second norm and with the sum."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self._norms = block.norm1, block.norm2
        self._convolutions = block.conv1, block.conv2
        self._shortcut = block.conv_shortcut
        last: torch.Tensor = block.conv2.bias
        self._last_bias = last if self._shortcut is None else last + self._shortcut.bias

    def forward(self, x: torch.Tensor, temb: None = None) -> torch.Tensor:
        hidden = _convolved(self._convolutions[0], norm_silu(self._norms[0], x))
        hidden = norm_silu(self._norms[1], hidden, self._convolutions[0].bias)
        hidden = _convolved(self._convolutions[1], hidden)
        return add_bias(hidden, self._last_bias, x if self._shortcut is None else _convolved(self._shortcut, x))


class Upsample(nn.Module):
    """An ``Upsample2D`` with a convolution."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self._convolution = block.conv

    def forward(self, x: torch.Tensor, output_size: None = None) -> torch.Tensor:
        return add_bias(_convolved(self._convolution, doubled(x)), self._convolution.bias)


def accelerate(coder: Any) -> None:
    """Puts these in place of what a diffusers VAE encoder or decoder has; its weights must be channels-last."""
    for parent in list(coder.modules()):
        for name, child in list(parent.named_children()):
            match type(child).__name__:
                case "ResnetBlock2D":
                    setattr(parent, name, Resnet(child))
                case "Upsample2D":
                    setattr(parent, name, Upsample(child))
    coder.conv_norm_out, coder.conv_act = NormSilu(coder.conv_norm_out), nn.Identity()


def _convolved(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Without its bias, in channels-last order."""
    out = F.conv2d(x, layer.weight, None, layer.stride, layer.padding)
    return out.contiguous(memory_format=torch.channels_last)
