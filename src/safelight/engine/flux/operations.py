"""What stands between the matrix products of a FLUX block, in plain PyTorch: for the CPU, and what ``kernels`` equals.

Tokens are matrices of shape (all tokens, channels) in the order of ``BatchShape``; ``modulation`` is (rows, numbers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from safelight.engine.flux.linears import Float8Linear, Layer, Linear, Rows, SplitLinear, scaled
from safelight.engine.flux.shape import At, BatchShape, Norm

NORM_EPS = 1e-6
_HALF_MAX = 65504.0

Rope = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of the rotary embedding, each (tokens of a sample, head size / 2) in float32."""
QueryKeyValue = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Pending = Callable[[], torch.Tensor]
"""Gives what was begun: others may be at work on it."""


class Operations:
    """As diffusers' blocks compute them, but for the order in which tokens lie.

    With ``float8`` the blocks' layers hold and take eight bits, and what makes their input rounds it to that.
    """

    def __init__(self, *, float8: bool = False) -> None:
        self.float8 = float8

    # --- layers -----------------------------------------------------------------------------------------------------

    def linear(self, *layers: nn.Linear) -> Layer:
        """One product for all ``layers``, which read the same rows."""
        return Float8Linear(*layers) if self.float8 else Linear(*layers)

    def split_linear(self, layer: nn.Linear, first_features: int) -> SplitLinear | Float8Linear:
        """A layer over two inputs side by side, the first of so many features."""
        return Float8Linear(layer) if self.float8 else SplitLinear(layer, first_features)

    def rows(self, matrix: torch.Tensor) -> Rows:
        """``matrix`` as the layers take it."""
        return scaled(matrix) if self.float8 else matrix

    def activated(self, up: Layer, rows: Rows) -> Rows:
        """GELU (tanh) of what ``up`` makes, as rows for the next layer."""
        return self.rows(F.gelu(up(rows), approximate="tanh"))

    def side_by_side(self, down: SplitLinear | Float8Linear, attended: Pending, up: Layer, rows: Rows) -> torch.Tensor:
        """``down`` of the attention's output and of the MLP's hidden values, which are made first."""
        hidden = F.gelu(up(rows), approximate="tanh")
        if isinstance(down, SplitLinear):
            return down(attended(), hidden)
        return down(scaled(torch.cat([attended(), hidden], dim=1)))

    # --- between the layers -----------------------------------------------------------------------------------------

    def norm(self, tokens: torch.Tensor, modulation: torch.Tensor, shape: BatchShape, norm: Norm) -> Rows:
        """LayerNorm, then times (1 + scale) plus shift of the token's own sample; as the layers take it."""
        rows = _normed(tokens, modulation, shape, norm)
        return self.rows(rows) if norm.is_inner else rows

    def add_and_norm(
        self,
        tokens: torch.Tensor,
        change: torch.Tensor,
        modulation: torch.Tensor,
        shape: BatchShape,
        gate: At,
        norm: Norm,
    ) -> Rows:
        """Adds gate * ``change`` to ``tokens`` in place, then ``norm`` of the sum. ``change`` is used up."""
        for part, gates in _parts(change, modulation, shape, gate):
            part.mul_(gates)
        tokens.add_(change)
        if tokens.dtype is torch.float16:
            tokens.clamp_(-_HALF_MAX, _HALF_MAX)
        return self.norm(tokens, modulation, shape, norm)

    def query_key_value(
        self, projected: torch.Tensor, norms: torch.Tensor, rope: Rope, shape: BatchShape, heads: int
    ) -> QueryKeyValue:
        """Queries, keys and values of shape (rows, heads, tokens, head size): normed and rotated, texts first.

        ``projected`` is (all tokens, 3 * heads * head size); ``norms`` is (4, head size): the RMSNorm weights of the
        text's queries and keys, then of the picture's.
        """
        split = shape.text_tokens
        parts = [(projected[split:].unflatten(0, (shape.rows, shape.image)), norms[2:])]
        if split:
            parts.insert(0, (projected[:split].unflatten(0, (shape.rows, shape.text)), norms[:2]))
        streams = [_normed_heads(part, heads, *weights) for part, weights in parts]
        query, key, value = (torch.cat(same, dim=1) for same in zip(*streams, strict=True))
        return _rotated(query, rope).transpose(1, 2), _rotated(key, rope).transpose(1, 2), value.transpose(1, 2)


def _normed(tokens: torch.Tensor, modulation: torch.Tensor, shape: BatchShape, norm: Norm) -> torch.Tensor:
    normed = F.layer_norm(tokens, (tokens.shape[1],), eps=NORM_EPS)
    scales = [scales for _, scales in _parts(normed, modulation, shape, norm.scale)]
    for (part, shifts), scale in zip(_parts(normed, modulation, shape, norm.shift), scales, strict=True):
        part.mul_(1 + scale).add_(shifts)
    return normed


def _parts(
    matrix: torch.Tensor, modulation: torch.Tensor, shape: BatchShape, at: At
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The text's tokens and the picture's as (rows, tokens, width), each with its numbers as (rows, 1, width)."""
    width, split = matrix.shape[1], shape.text_tokens
    if split:
        yield matrix[:split].unflatten(0, (shape.rows, shape.text)), modulation[:, None, at.text : at.text + width]
    yield matrix[split:].unflatten(0, (shape.rows, shape.image)), modulation[:, None, at.image : at.image + width]


def _normed_heads(
    projected: torch.Tensor, heads: int, query_weight: torch.Tensor, key_weight: torch.Tensor
) -> QueryKeyValue:
    """Each (rows, tokens, heads, head size)."""
    query, key, value = projected.unflatten(-1, (3, heads, -1)).unbind(2)
    size = query.shape[-1:]
    return F.rms_norm(query, size, query_weight, NORM_EPS), F.rms_norm(key, size, key_weight, NORM_EPS), value


def _rotated(x: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Each pair of neighbouring channels turned by its token's angle; ``x`` is (rows, tokens, heads, head size)."""
    cosines, sines = (table[:, None, :] for table in rope)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cosines - odd * sines, odd * cosines + even * sines], dim=-1)
    return turned.flatten(-2).to(x.dtype)
