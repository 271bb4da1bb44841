"""``Operations`` as Triton kernels: one pass over memory where PyTorch makes three to eight.

Compiled once per model and precision, not per size or batch: those are run-time arguments, so there is no shape that a
request could be the first of. ``tests/unit/test_kernels.py`` runs them in Triton's interpreter against ``operations``.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

from safelight.engine.flux.linears import FLOAT8, FLOAT8_MAX, Float8Linear, Layer, Linear, Rows, Scaled, SplitLinear
from safelight.engine.flux.operations import NORM_EPS, Operations, Pending, QueryKeyValue, Rope
from safelight.engine.flux.shape import At, BatchShape, Norm

_HEADS_AT_ONCE = 8
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_EPS: tl.constexpr = tl.constexpr(NORM_EPS)
_FLOAT8_MAX: tl.constexpr = tl.constexpr(FLOAT8_MAX)
_LEAST_SCALE: tl.constexpr = tl.constexpr(1e-12 / FLOAT8_MAX)


@triton.jit
def _gelu(x, INTERPRETED: tl.constexpr):
    """GELU in its tanh form, by the hardware's own tanh; the interpreter has none."""
    inner = 0.7978845608028654 * x * (1.0 + 0.044715 * x * x)
    if INTERPRETED:
        tanh = 2.0 / (1.0 + tl.exp(-2.0 * inner)) - 1.0
    else:
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [inner], dtype=tl.float32, is_pure=True, pack=1
        )
    return 0.5 * x * (1.0 + tanh)


@triton.jit(do_not_specialize=["text_tokens", "text", "image"])
def _norm_kernel(
    tokens, change, out, out_scales, modulation, modulation_stride,
    text_tokens, text, image,
    text_gate, image_gate, text_shift, image_shift, text_scale, image_scale,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr, QUANTISES: tl.constexpr,
):  # fmt: skip
    """One program a token: tokens += gate * change; out = LayerNorm(tokens) * (1 + scale) + shift."""
    row = tl.program_id(0)
    is_text = row < text_tokens
    sample = tl.where(is_text, row // tl.maximum(text, 1), (row - text_tokens) // image)
    numbers = modulation + sample.to(tl.int64) * modulation_stride
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    place = row.to(tl.int64) * WIDTH + columns
    x = tl.load(tokens + place, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        gate = tl.load(numbers + tl.where(is_text, text_gate, image_gate) + columns, mask=inside, other=0.0)
        x += gate.to(tl.float32) * tl.load(change + place, mask=inside, other=0.0).to(tl.float32)
        summed = x.to(tokens.dtype.element_ty)
        tl.store(tokens + place, summed, mask=inside)
        x = summed.to(tl.float32)
    centred = tl.where(inside, x - tl.sum(x, 0) / WIDTH, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred, 0) / WIDTH + _EPS)
    scale = tl.load(numbers + tl.where(is_text, text_scale, image_scale) + columns, mask=inside, other=0.0)
    shift = tl.load(numbers + tl.where(is_text, text_shift, image_shift) + columns, mask=inside, other=0.0)
    normed = normed * (1.0 + scale.to(tl.float32)) + shift.to(tl.float32)
    if QUANTISES:
        normed = tl.where(inside, normed, 0.0)
        row_scale = tl.maximum(tl.max(tl.abs(normed), 0) / _FLOAT8_MAX, _LEAST_SCALE)
        tl.store(out_scales + row, row_scale)
        normed = normed / row_scale
    tl.store(out + place, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["text_tokens", "text", "image"])
def _heads_kernel(
    projected, out, norms, cosines, sines,
    text_tokens, text, image,
    HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr, MOVES: tl.constexpr,
):  # fmt: skip
    """One program a token and a few heads: RMSNorm and rotation of queries and keys; values only move."""
    row = tl.program_id(0)
    is_text = row < text_tokens
    of_image = row - text_tokens
    sample = tl.where(is_text, row // tl.maximum(text, 1), of_image // image)
    position = tl.where(is_text, row % tl.maximum(text, 1), text + of_image % image)
    stream = tl.where(is_text, 0, 2)
    SIZE: tl.constexpr = 2 * HALF
    heads = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channels = tl.arange(0, 2 * HALF_BLOCK)
    pairs = tl.arange(0, HALF_BLOCK)
    within = heads[:, None] * SIZE + channels[None, :]
    inside = (heads[:, None] < HEADS) & (channels[None, :] < SIZE)
    source = projected + row.to(tl.int64) * (3 * HEADS * SIZE)
    target = out + (sample * (text + image) + position).to(tl.int64) * (3 * HEADS * SIZE)
    cosine = tl.load(cosines + position * HALF + pairs, mask=pairs < HALF, other=0.0)[None, :]
    sine = tl.load(sines + position * HALF + pairs, mask=pairs < HALF, other=0.0)[None, :]
    for part in tl.static_range(2):
        x = tl.load(source + part * HEADS * SIZE + within, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(norms + (stream + part) * SIZE + channels, mask=channels < SIZE, other=0.0)
        x = x * tl.rsqrt(tl.sum(x * x, 1) / SIZE + _EPS)[:, None] * weight.to(tl.float32)[None, :]
        even, odd = tl.split(tl.reshape(x, (BLOCK, HALF_BLOCK, 2)))
        turned = tl.join(even * cosine - odd * sine, odd * cosine + even * sine)
        turned = tl.reshape(turned, (BLOCK, 2 * HALF_BLOCK)).to(out.dtype.element_ty)
        tl.store(target + part * HEADS * SIZE + within, turned, mask=inside)
    if MOVES:
        value = tl.load(source + 2 * HEADS * SIZE + within, mask=inside)
        tl.store(target + 2 * HEADS * SIZE + within, value, mask=inside)


@triton.jit
def _quantise_kernel(
    first, second, out, out_scales,
    FIRST: tl.constexpr, FIRST_BLOCK: tl.constexpr, SECOND: tl.constexpr, SECOND_BLOCK: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """One program a row: ``first`` as it is, beside GELU of ``second``, in float8 with one scale; a width may be 0."""
    row = tl.program_id(0).to(tl.int64)
    largest = 0.0
    if FIRST > 0:
        columns = tl.arange(0, FIRST_BLOCK)
        a = tl.load(first + row * FIRST + columns, mask=columns < FIRST, other=0.0).to(tl.float32)
        largest = tl.max(tl.abs(a), 0)
    if SECOND > 0:
        more = tl.arange(0, SECOND_BLOCK)
        b = _gelu(tl.load(second + row * SECOND + more, mask=more < SECOND, other=0.0).to(tl.float32), INTERPRETED)
        largest = tl.maximum(largest, tl.max(tl.abs(b), 0))
    scale = tl.maximum(largest / _FLOAT8_MAX, _LEAST_SCALE)
    tl.store(out_scales + row, scale)
    target = out + row * (FIRST + SECOND)
    if FIRST > 0:
        tl.store(target + columns, (a / scale).to(out.dtype.element_ty), mask=columns < FIRST)
    if SECOND > 0:
        tl.store(target + FIRST + more, (b / scale).to(out.dtype.element_ty), mask=more < SECOND)


class TritonOperations(Operations):
    """For CUDA devices, in bfloat16 or float32."""

    def norm(self, tokens: torch.Tensor, modulation: torch.Tensor, shape: BatchShape, norm: Norm) -> Rows:
        return self._add_and_norm(tokens, None, modulation, shape, At(0, 0), norm)

    def add_and_norm(
        self,
        tokens: torch.Tensor,
        change: torch.Tensor,
        modulation: torch.Tensor,
        shape: BatchShape,
        gate: At,
        norm: Norm,
    ) -> Rows:
        return self._add_and_norm(tokens, change, modulation, shape, gate, norm)

    def _add_and_norm(
        self,
        tokens: torch.Tensor,
        change: torch.Tensor | None,
        modulation: torch.Tensor,
        shape: BatchShape,
        gate: At,
        norm: Norm,
    ) -> Rows:
        quantises = self.float8 and norm.is_inner
        count, width = tokens.shape
        out = torch.empty_like(tokens, dtype=FLOAT8 if quantises else tokens.dtype)
        scales = torch.empty((count, 1), dtype=torch.float32, device=tokens.device) if quantises else None
        _norm_kernel[(count,)](
            tokens, change, out, scales, modulation, modulation.stride(0),
            shape.text_tokens, shape.text, shape.image,
            *gate, *norm.shift, *norm.scale,
            WIDTH=width, BLOCK=triton.next_power_of_2(width), ADDS=change is not None, QUANTISES=quantises,
            num_warps=_warps(width),
        )  # fmt: skip
        return out if scales is None else Scaled(out, scales)

    def query_key_value(
        self, projected: torch.Tensor, norms: torch.Tensor, rope: Rope, shape: BatchShape, heads: int
    ) -> QueryKeyValue:
        size = projected.shape[1] // (3 * heads)
        # One sample is in place already; several change from texts first to sample after sample.
        moves = shape.rows > 1 and shape.text > 0
        out = torch.empty_like(projected) if moves else projected
        block = min(_HEADS_AT_ONCE, triton.next_power_of_2(heads))
        _heads_kernel[(len(projected), triton.cdiv(heads, block))](
            projected, out, norms, *rope, shape.text_tokens, shape.text, shape.image,
            HEADS=heads, HALF=size // 2, BLOCK=block, HALF_BLOCK=triton.next_power_of_2(size // 2), MOVES=moves,
            num_warps=4,
        )  # fmt: skip
        joint = out.view(shape.rows, shape.tokens, 3, heads, size)
        query, key, value = joint.transpose(1, 3).unbind(2)
        return query, key, value

    def rows(self, matrix: torch.Tensor) -> Rows:
        return self._quantised(matrix, None) if self.float8 else matrix

    def activated(self, up: Layer, rows: Rows) -> Rows:
        if isinstance(up, Linear):
            assert isinstance(rows, torch.Tensor)
            return up.gelu(rows)
        return self._quantised(None, up(rows))

    def side_by_side(self, down: SplitLinear | Float8Linear, attended: Pending, up: Layer, rows: Rows) -> torch.Tensor:
        if isinstance(down, SplitLinear):
            assert isinstance(up, Linear) and isinstance(rows, torch.Tensor)
            hidden = up.gelu(rows)
            return down(attended(), hidden)
        hidden = up(rows)
        return down(self._quantised(attended(), hidden))

    def _quantised(self, first: torch.Tensor | None, second: torch.Tensor | None) -> Scaled:
        """``first`` beside GELU of ``second``."""
        given = [matrix for matrix in (first, second) if matrix is not None]
        widths = [0 if matrix is None else matrix.shape[1] for matrix in (first, second)]
        values = torch.empty((len(given[0]), sum(widths)), dtype=FLOAT8, device=given[0].device)
        scales = torch.empty((len(values), 1), dtype=torch.float32, device=values.device)
        _quantise_kernel[(len(values),)](
            first, second, values, scales,
            FIRST=widths[0], FIRST_BLOCK=triton.next_power_of_2(max(widths[0], 1)),
            SECOND=widths[1], SECOND_BLOCK=triton.next_power_of_2(max(widths[1], 1)),
            INTERPRETED=_INTERPRETED, num_warps=_warps(max(widths)),
        )  # fmt: skip
        return Scaled(values, scales)


def _warps(width: int) -> int:
    """So that a thread has some sixteen values of a row; more threads than 256 left fewer rows under way."""
    return min(max(int(triton.next_power_of_2(width)) // 512, 1), 8)
