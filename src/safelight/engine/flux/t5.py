"""The forward of FLUX's T5 encoder, over the weights of transformers' ``T5EncoderModel``, for CUDA.

transformers normalises, biases and activates in many small kernels, which take longer than its matrix products.
``tests/integration/test_text.py`` holds this one to transformers' own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


class LeanT5:
    """Takes over the weights of ``model``: its queries, keys and values become one product, as do both gates."""

    def __init__(self, model: Any) -> None:
        self._embedding = model.shared if hasattr(model, "shared") else model.encoder.embed_tokens
        self._blocks = [_Block(block) for block in model.encoder.block]
        self._norm = model.encoder.final_layer_norm
        self._attention = model.encoder.block[0].layer[0].SelfAttention

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether the model is of the kind that FLUX has: gated with GELU."""
        return bool(model.config.is_gated_act) and model.config.dense_act_fn == "gelu_new"

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """(1, tokens) to (1, tokens, size). Padding is attended to, as FLUX was trained."""
        tokens = self._embedding(token_ids)[0].clone()
        length = len(tokens)
        bias = self._attention.compute_bias(length, length, device=tokens.device).to(tokens.dtype)
        # Eight numbers at a time is how attention kernels read a bias.
        padded = F.pad(bias, (0, -length % 8))[..., :length]
        for block in self._blocks:
            block.advance(tokens, padded)
        return _normed(tokens, self._norm)[None]


class _Block:
    """Attention, then a gated MLP, each added to the tokens in place."""

    def __init__(self, block: Any) -> None:
        attention, mlp = block.layer[0].SelfAttention, block.layer[1].DenseReluDense
        self._heads: int = attention.n_heads
        self._norms = block.layer[0].layer_norm, block.layer[1].layer_norm
        self._qkv = _joined(attention.q, attention.k, attention.v)
        self._gates = _joined(mlp.wi_0, mlp.wi_1)
        self._out, self._down = attention.o.weight.detach().t(), mlp.wo.weight.detach().t()

    def advance(self, tokens: torch.Tensor, bias: torch.Tensor) -> None:
        """``tokens`` is (tokens, size), ``bias`` (1, heads, tokens, tokens)."""
        projected = (_normed(tokens, self._norms[0]) @ self._qkv).view(1, len(tokens), 3, self._heads, -1)
        query, key, value = projected.transpose(1, 3).unbind(2)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        tokens.addmm_(attended.transpose(1, 2).flatten(2)[0], self._out)
        gate, linear = (_normed(tokens, self._norms[1]) @ self._gates).chunk(2, dim=1)
        tokens.addmm_(F.gelu(gate, approximate="tanh") * linear, self._down)


def _normed(tokens: torch.Tensor, norm: Any) -> torch.Tensor:
    return F.rms_norm(tokens, tokens.shape[-1:], norm.weight, norm.variance_epsilon)


def _joined(*layers: torch.nn.Linear) -> torch.Tensor:
    """Weights as one, transposed; the layers then are views of it."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    place = 0
    for layer in layers:
        layer.weight.data = weight[place : place + layer.out_features]
        place += layer.out_features
    return weight.t()
