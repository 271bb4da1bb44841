"""GroupNorm and SiLU of the VAE in one operation, for tensors in channels-last order.

PyTorch's GroupNorm wants channels first and copies there and back, which costs more than channels-last gains the
convolutions. Here two passes read the tensor and one writes it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import nn

_ELEMENTS = 8192
_STEPS = 16


@triton.jit
def _sums_kernel(
    x, sums, pixels, chunks, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr
):
    """Sum and sum of squares of each channel over some pixels: sums is (pictures, 2, chunks, channels)."""
    picture, chunk = tl.program_id(0), tl.program_id(1)
    channels = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    for step in range(STEPS):
        rows = (chunk * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside = (rows[:, None] < pixels) & (channels[None, :] < CHANNELS)
        place = (picture.to(tl.int64) * pixels + rows[:, None]) * CHANNELS + channels[None, :]
        values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(values, 0)
        squares += tl.sum(values * values, 0)
    target = sums + (picture * 2 * chunks + chunk) * CHANNELS + channels
    tl.store(target, total, mask=channels < CHANNELS)
    tl.store(target + chunks * CHANNELS, squares, mask=channels < CHANNELS)


@triton.jit
def _factors_kernel(
    sums, weight, bias, factors, pixels, chunks, EPS: tl.constexpr,
    CHANNELS: tl.constexpr, GROUP: tl.constexpr, GROUP_BLOCK: tl.constexpr, CHUNKS_BLOCK: tl.constexpr,
):  # fmt: skip
    """For one group of one picture: factors (pictures, 2, channels) such that the norm is x * factor + offset."""
    picture, group = tl.program_id(0), tl.program_id(1)
    within = tl.arange(0, GROUP_BLOCK)
    channels = group * GROUP + within
    chunk = tl.arange(0, CHUNKS_BLOCK)
    inside = (chunk[:, None] < chunks) & (within[None, :] < GROUP)
    place = sums + (picture * 2 * chunks + chunk[:, None]) * CHANNELS + channels[None, :]
    count = pixels.to(tl.float32) * GROUP
    mean = tl.sum(tl.load(place, mask=inside, other=0.0)) / count
    square = tl.sum(tl.load(place + chunks * CHANNELS, mask=inside, other=0.0)) / count
    scale = tl.load(weight + channels, mask=within < GROUP, other=0.0).to(tl.float32)
    factor = scale * tl.rsqrt(tl.maximum(square - mean * mean, 0.0) + EPS)
    offset = tl.load(bias + channels, mask=within < GROUP, other=0.0).to(tl.float32) - mean * factor
    target = factors + picture * 2 * CHANNELS + channels
    tl.store(target, factor, mask=within < GROUP)
    tl.store(target + CHANNELS, offset, mask=within < GROUP)


@triton.jit
def _apply_kernel(x, factors, out, pixels, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    picture = tl.program_id(0)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    channels = tl.arange(0, BLOCK)
    known = channels < CHANNELS
    inside = (rows[:, None] < pixels) & known[None, :]
    place = (picture.to(tl.int64) * pixels + rows[:, None]) * CHANNELS + channels[None, :]
    factor = tl.load(factors + picture * 2 * CHANNELS + channels, mask=known, other=0.0)
    offset = tl.load(factors + picture * 2 * CHANNELS + CHANNELS + channels, mask=known, other=0.0)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * factor[None, :] + offset[None, :]
    tl.store(out + place, (value / (1.0 + tl.exp(-value))).to(out.dtype.element_ty), mask=inside)


class GroupNormSilu(nn.Module):
    """``silu(group_norm(x))`` over the weights of ``norm``; ``x`` is (pictures, channels, height, width)."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        pictures, channels, height, width = x.shape
        pixels, group = height * width, channels // self.norm.num_groups
        block = triton.next_power_of_2(channels)
        rows = max(_ELEMENTS // block, 1)
        chunks = triton.cdiv(pixels, rows * _STEPS)
        sums = torch.empty((pictures, 2, chunks, channels), dtype=torch.float32, device=x.device)
        factors = torch.empty((pictures, 2, channels), dtype=torch.float32, device=x.device)
        out = torch.empty_like(x)
        _sums_kernel[(pictures, chunks)](
            x, sums, pixels, chunks, CHANNELS=channels, BLOCK=block, ROWS=rows, STEPS=_STEPS
        )
        _factors_kernel[(pictures, self.norm.num_groups)](
            sums, self.norm.weight, self.norm.bias, factors, pixels, chunks, EPS=self.norm.eps, CHANNELS=channels,
            GROUP=group, GROUP_BLOCK=triton.next_power_of_2(group), CHUNKS_BLOCK=triton.next_power_of_2(chunks),
        )  # fmt: skip
        _apply_kernel[(pictures, triton.cdiv(pixels, rows))](
            x, factors, out, pixels, CHANNELS=channels, BLOCK=block, ROWS=rows
        )
        return out


def fuse_norms(coder: Any) -> None:
    """Puts ``GroupNormSilu`` in place of the norms and activations of a diffusers VAE encoder or decoder."""
    for module in list(coder.modules()):
        if type(module).__name__ == "ResnetBlock2D" and isinstance(module.nonlinearity, nn.SiLU):
            module.norm1, module.norm2 = GroupNormSilu(module.norm1), GroupNormSilu(module.norm2)
            module.nonlinearity = nn.Identity()
    if isinstance(coder.conv_act, nn.SiLU):
        coder.conv_norm_out, coder.conv_act = GroupNormSilu(coder.conv_norm_out), nn.Identity()
