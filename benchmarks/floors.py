"""What a denoising step cannot be faster than on a card: its matrix products and its attention alone, run in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from safelight.engine.flux.linears import scaled


def step_flops(config: Any, rows: int, text: int, image: int) -> float:
    """Of one transformer call, without what is done once per token or once per step; a multiply-add counts as two.

    Both kinds of block have 12 width^2 weights a token: 3 for queries, keys and values, 1 for the
    output, 8 for the MLP.
    """
    width = config.num_attention_heads * config.attention_head_dim
    blocks, tokens = config.num_layers + config.num_single_layers, text + image
    return float(rows * blocks * (24 * width**2 * tokens + 4 * width * tokens**2))


def floor_calls(config: Any, rows: int, text: int, image: int, *, float8: bool) -> Callable[[], None]:
    """Runs all products and attentions of a step on data of their own, in bfloat16 or with float8 products."""
    width = config.num_attention_heads * config.attention_head_dim
    tokens = text + image
    calls: list[Callable[[], object]] = []
    for count, streams, products in (
        (config.num_layers, (rows * text, rows * image), ((1, 3), (1, 1), (1, 4), (4, 1))),
        (config.num_single_layers, (rows * tokens,), ((1, 3), (1, 4), (5, 1))),
    ):
        for stream in streams:
            for inner, outer in products:
                calls += [_product(stream, inner * width, outer * width, float8=float8)] * count
    heads = torch.randn(rows, tokens, 3, config.num_attention_heads, config.attention_head_dim, **_PLACE)
    query, key, value = heads.transpose(1, 3).unbind(2)
    blocks = config.num_layers + config.num_single_layers
    calls += [lambda: F.scaled_dot_product_attention(query, key, value)] * blocks

    def run() -> None:
        for call in calls:
            call()

    return run


_PLACE: dict[str, Any] = {"dtype": torch.bfloat16, "device": "cuda"}


def _product(rows: int, inner: int, outer: int, *, float8: bool) -> Callable[[], object]:
    left, right = torch.randn(rows, inner, **_PLACE), 0.02 * torch.randn(outer, inner, **_PLACE)
    bias, out = torch.randn(outer, **_PLACE), torch.empty(rows, outer, **_PLACE)
    if not float8:
        return lambda: torch.addmm(bias, left, right.t(), out=out)
    a, b = scaled(left), scaled(right)
    return lambda: torch._scaled_mm(
        a.values,
        b.values.t(),
        scale_a=a.scales,
        scale_b=b.scales.t(),
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
        out=out,
    )
