"""What stands between the convolutions of FLUX's VAE, for tensors in channels-last order, as Triton kernels.

PyTorch's GroupNorm wants channels first and copies there and back, which costs more than channels-last gains the
convolutions; the biases of convolutions and the sums of residual branches are passes of their own. Here a norm with its
activation reads the tensor twice and writes it once, and biases travel with what comes next.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import nn

_ELEMENTS = 8192
_STEPS = 16


@triton.jit
def _sums_kernel(
    x, shift, sums, pixels, chunks,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr, SHIFTS: tl.constexpr,
):  # fmt: skip
    """Sum and sum of squares of each channel over some pixels: sums is (pictures, 2, chunks, channels)."""
    picture, chunk = tl.program_id(0), tl.program_id(1)
    channels = tl.arange(0, BLOCK)
    known = channels < CHANNELS
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    squares = tl.zeros((ROWS, BLOCK), tl.float32)
    for step in range(STEPS):
        rows = (chunk * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside = (rows[:, None] < pixels) & known[None, :]
        place = (picture.to(tl.int64) * pixels + rows[:, None]) * CHANNELS + channels[None, :]
        values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        if SHIFTS:
            offset = tl.load(shift + channels, mask=known, other=0.0).to(tl.float32)
            values = tl.where(inside, values + offset[None, :], 0.0)
        total += values
        squares += values * values
    target = sums + (picture * 2 * chunks + chunk) * CHANNELS + channels
    tl.store(target, tl.sum(total, 0), mask=known)
    tl.store(target + chunks * CHANNELS, tl.sum(squares, 0), mask=known)


@triton.jit
def _factors_kernel(
    sums, weight, bias, shift, factors, pixels, chunks, EPS: tl.constexpr, CHANNELS: tl.constexpr,
    GROUP: tl.constexpr, GROUP_BLOCK: tl.constexpr, CHUNKS_BLOCK: tl.constexpr, SHIFTS: tl.constexpr,
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
    if SHIFTS:
        offset += factor * tl.load(shift + channels, mask=within < GROUP, other=0.0).to(tl.float32)
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


@triton.jit
def _add_kernel(x, bias, other, out, count, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    value = tl.load(x + place, mask=inside).to(tl.float32)
    value += tl.load(bias + place % CHANNELS, mask=inside).to(tl.float32)
    if ADDS:
        value += tl.load(other + place, mask=inside).to(tl.float32)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _double_kernel(x, out, pixels, width, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """Each pixel four times; ``width`` is that of ``x``."""
    picture = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    channels = tl.arange(0, BLOCK)[None, :]
    inside = (rows[:, None] < pixels) & (channels < CHANNELS)
    values = tl.load(x + (picture * pixels + rows[:, None]) * CHANNELS + channels, mask=inside)
    first = (picture * pixels + (rows // width) * width) * 4 + (rows % width) * 2
    for line in tl.static_range(2):
        for column in tl.static_range(2):
            place = (first + line * 2 * width + column)[:, None] * CHANNELS + channels
            tl.store(out + place, values, mask=inside)


def norm_silu(norm: nn.GroupNorm, x: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
    """``silu(norm(x + shift))``: ``x`` is (pictures, channels, height, width), ``shift`` (channels,)."""
    x = x.contiguous(memory_format=torch.channels_last)
    pictures, channels, height, width = x.shape
    pixels, group = height * width, channels // norm.num_groups
    block = triton.next_power_of_2(channels)
    rows = max(_ELEMENTS // block, 1)
    few_rows = max(rows // 4, 1)
    chunks = triton.cdiv(pixels, few_rows * _STEPS)
    sums = torch.empty((pictures, 2, chunks, channels), dtype=torch.float32, device=x.device)
    factors = torch.empty((pictures, 2, channels), dtype=torch.float32, device=x.device)
    out = torch.empty_like(x)
    shifts = shift is not None
    _sums_kernel[(pictures, chunks)](
        x, shift, sums, pixels, chunks, CHANNELS=channels, BLOCK=block, ROWS=few_rows, STEPS=_STEPS, SHIFTS=shifts
    )
    _factors_kernel[(pictures, norm.num_groups)](
        sums, norm.weight, norm.bias, shift, factors, pixels, chunks, EPS=norm.eps, CHANNELS=channels, SHIFTS=shifts,
        GROUP=group, GROUP_BLOCK=triton.next_power_of_2(group), CHUNKS_BLOCK=triton.next_power_of_2(chunks),
    )  # fmt: skip
    _apply_kernel[(pictures, triton.cdiv(pixels, rows))](
        x, factors, out, pixels, CHANNELS=channels, BLOCK=block, ROWS=rows
    )
    return out


def add_bias(x: torch.Tensor, bias: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
    """``x`` + ``bias`` of its channel + ``other``, written over ``x``; both in channels-last order."""
    count = x.numel()
    _add_kernel[(triton.cdiv(count, _ELEMENTS // 2),)](
        x, bias, other, x, count, CHANNELS=x.shape[1], BLOCK=_ELEMENTS // 2, ADDS=other is not None
    )
    return x


def doubled(x: torch.Tensor) -> torch.Tensor:
    """Nearest-neighbour upsampling to twice the height and width."""
    x = x.contiguous(memory_format=torch.channels_last)
    pictures, channels, height, width = x.shape
    out = torch.empty(
        (pictures, channels, 2 * height, 2 * width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    block = triton.next_power_of_2(channels)
    rows = max(_ELEMENTS // block, 1)
    _double_kernel[(pictures, triton.cdiv(height * width, rows))](
        x, out, height * width, width, CHANNELS=channels, BLOCK=block, ROWS=rows
    )
    return out
