"""The forward of FLUX's transformer, over the weights of diffusers' ``FluxTransformer2DModel``.

What does not change between steps is computed once: the modulations of all steps in one matrix product per layer, the
projected text, the rotary tables. What is left are the matrix products, attention, and the fused operations between
them. A batch may hold samples at different steps, with different guidance and prompts. Equal to diffusers' own forward
up to rounding; ``tests/integration/test_transformer.py`` holds it to that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from safelight.engine.flux.attention import Attention, attend_alone
from safelight.engine.flux.linears import Adaptable, Linear
from safelight.engine.flux.operations import Operations, Rope
from safelight.engine.flux.residency import Residency
from safelight.engine.flux.shape import At, BatchShape, Norm

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

_TIME_SCALE = 1000


class LeanTransformer:
    """Takes over the weights of ``model``, which from then on may not be called or moved.

    They lie where ``residency`` loads them, without one on the device.
    """

    def __init__(
        self, model: FluxTransformer2DModel, operations: Operations, residency: Residency | None = None
    ) -> None:
        self._model = model
        self._operations = operations
        self._residency = residency or Residency(model.device)
        self._heads = model.config.num_attention_heads
        doubles, singles = model.transformer_blocks, model.single_transformer_blocks
        self._residency.bring(model, besides=[doubles, singles, model.norm_out.linear])
        places = _Places(model.inner_dim)
        self._double = [self._made(DoubleBlock, block, places) for block in doubles]
        self._single = [self._made(SingleBlock, block, places) for block in singles]
        scale, shift = places.take(model.norm_out.linear, 2)
        self._residency.blocks_end()
        self._residency.once(places.layers)
        self._modulation_layers = places.layers
        self._first, self._last = Linear(model.x_embedder), Linear(model.proj_out)
        blocks: list[DoubleBlock | SingleBlock] = [*self._double, *self._single]
        self._norms = [block.norm for block in blocks] + [Norm(shift, scale, is_inner=False)]

    def _made(self, kind: type[Block], block: nn.Module, places: _Places) -> Block:
        modulations = [part for name, part in block.named_modules() if name.startswith("norm") and "linear" in name]
        self._residency.bring(block, besides=modulations)
        made = kind(block, self._operations, places)
        self._residency.block(_adaptable(made))
        return made

    @property
    def model(self) -> FluxTransformer2DModel:
        """Whose weights these are."""
        return self._model

    def layers(self) -> Iterator[Adaptable]:
        """Those that are used at every step; all others are used when a picture begins."""
        for part in (self, *self._double, *self._single):
            yield from _adaptable(part)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._model.x_embedder.weight.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        device: torch.device = self._model.x_embedder.weight.device
        return device

    def modulations(self, timesteps: torch.Tensor, guidance_scale: float | None, pooled: torch.Tensor) -> torch.Tensor:
        """Shifts, scales and gates of all blocks at each of ``timesteps`` (0..1000): (steps, numbers).

        They depend on the step, the guidance and ``pooled`` (1, size) alone. 27 % of FLUX.1's weights serve only them.
        """
        # Rounded as diffusers rounds on the way.
        times = timesteps.to(self.device, self.dtype) / _TIME_SCALE * _TIME_SCALE
        pooled = pooled.expand(len(times), -1)
        embed = self._model.time_text_embed
        if self._model.config.guidance_embeds:
            guidance = torch.full((len(times),), guidance_scale or 0.0, device=self.device).to(self.dtype)
            condition = embed(times, guidance * _TIME_SCALE, pooled)
        else:
            condition = embed(times, pooled)
        condition = F.silu(condition)
        return torch.cat([layer(condition) for layer in self._modulation_layers], dim=1)

    def project_text(self, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """(text tokens, T5 size) to (text tokens, width)."""
        projected: torch.Tensor = self._model.context_embedder(prompt_embeds)
        return projected

    def rope(self, text: int, picture: tuple[int, int], reference: tuple[int, int] | None = None) -> Rope:
        """Rotary tables for ``text`` tokens, those of a picture (rows, columns) and of a reference behind it."""
        places = [torch.zeros(text, 3, device=self.device), self._places(0, *picture)]
        if reference is not None:
            places.append(self._places(1, *reference))
        # diffusers has each number twice, for both channels of a pair.
        cosines, sines = self._model.pos_embed(torch.cat(places))
        return cosines[:, ::2].contiguous(), sines[:, ::2].contiguous()

    def _places(self, number: int, height: int, width: int) -> torch.Tensor:
        """(number of the picture, row, column) of each token."""
        places = torch.full((height * width, 3), float(number), device=self.device)
        places[:, 1] = torch.arange(height, device=self.device).repeat_interleave(width)
        places[:, 2] = torch.arange(width, device=self.device).repeat(height)
        return places

    def __call__(
        self,
        latents: torch.Tensor,
        text: torch.Tensor,
        modulation: torch.Tensor,
        rope: Rope,
        attention: Attention = attend_alone,
    ) -> torch.Tensor:
        """The velocity of each sample: (rows, picture tokens, channels that are drawn).

        ``latents`` is (rows, picture tokens, channels), a reference's tokens among them; ``text`` (rows, text tokens,
        width), ``modulation`` (rows, numbers): for each sample the row of its own step. With another ``attention``
        tokens may be a part of all, with the ``rope`` of that part: nothing else looks beyond its own token.
        """
        shape = BatchShape(len(latents), text.shape[1], latents.shape[1])
        tokens = torch.cat([text.flatten(0, 1), self._first(latents.flatten(0, 1))])
        rows: Any = self._operations.norm(tokens, modulation, shape, self._norms[0])
        following = iter(self._norms[1:])
        for index, double in enumerate(self._double):
            with self._residency.at_work(index):
                change, gate = double.change(rows, tokens, modulation, shape, rope, self._heads, attention)
            rows = self._operations.add_and_norm(tokens, change, modulation, shape, gate, next(following))
        tokens, rows = _joined(tokens, shape), _joined(rows, shape)
        joint = shape.joint  # the single blocks know one stream only
        for index, single in enumerate(self._single, len(self._double)):
            with self._residency.at_work(index):
                change, gate = single.change(rows, joint, rope, self._heads, attention)
            rows = self._operations.add_and_norm(tokens, change, modulation, joint, gate, next(following))
        pictures = rows.unflatten(0, (shape.rows, -1))[:, shape.text :]
        velocity: torch.Tensor = self._last(pictures.flatten(0, 1)).unflatten(0, (shape.rows, -1))
        return velocity


class DoubleBlock:
    """A block with weights of their own for the text's and the picture's tokens, which meet in the attention."""

    def __init__(self, block: Any, operations: Operations, places: _Places) -> None:
        self._operations = operations
        shift, scale, self._gate, mlp_shift, mlp_scale, self._mlp_gate = places.take_pair(
            block.norm1_context.linear, block.norm1.linear, 6
        )
        self.norm, self._mlp_norm = Norm(shift, scale), Norm(mlp_shift, mlp_scale)
        attention, linear = block.attn, operations.linear
        self._text_qkv = linear(attention.add_q_proj, attention.add_k_proj, attention.add_v_proj)
        self._image_qkv = linear(attention.to_q, attention.to_k, attention.to_v)
        self._text_out, self._image_out = linear(attention.to_add_out), linear(attention.to_out[0])
        self._text_up, self._text_down = linear(block.ff_context.net[0].proj), linear(block.ff_context.net[2])
        self._image_up, self._image_down = linear(block.ff.net[0].proj), linear(block.ff.net[2])
        norms = (attention.norm_added_q, attention.norm_added_k, attention.norm_q, attention.norm_k)
        self._norms = torch.stack([norm.weight.detach() for norm in norms])

    def change(
        self,
        rows: Any,
        tokens: torch.Tensor,
        modulation: torch.Tensor,
        shape: BatchShape,
        rope: Rope,
        heads: int,
        attention: Attention,
    ) -> tuple[torch.Tensor, At]:
        """What is still to be added to ``tokens``, and by which gate; the attention's part is added in here."""
        split, operations = shape.text_tokens, self._operations
        projected = self._image_qkv.output(shape.all_tokens)
        self._text_qkv(rows[:split], out=projected[:split])
        self._image_qkv(rows[split:], out=projected[split:])
        attended = attention(*operations.query_key_value(projected, self._norms, rope, shape, heads))
        to_out: Any = operations.rows(_streams(attended(), shape))
        change = self._image_out.output(shape.all_tokens)
        self._text_out(to_out[:split], out=change[:split])
        self._image_out(to_out[split:], out=change[split:])
        to_mlp: Any = operations.add_and_norm(tokens, change, modulation, shape, self._gate, self._mlp_norm)
        change = self._image_down.output(shape.all_tokens)
        self._text_down(operations.activated(self._text_up, to_mlp[:split]), out=change[:split])
        self._image_down(operations.activated(self._image_up, to_mlp[split:]), out=change[split:])
        return change, self._mlp_gate


class SingleBlock:
    """A block with the same weights for all tokens, attention and MLP side by side."""

    def __init__(self, block: Any, operations: Operations, places: _Places) -> None:
        self._operations = operations
        shift, scale, self._gate = places.take(block.norm.linear, 3)
        self.norm = Norm(shift, scale)
        attention = block.attn
        self._qkv = operations.linear(attention.to_q, attention.to_k, attention.to_v)
        self._up = operations.linear(block.proj_mlp)
        self._down = operations.split_linear(block.proj_out, attention.inner_dim)
        self._norms = torch.stack([norm.weight.detach() for norm in (attention.norm_q, attention.norm_k)] * 2)

    def change(
        self, rows: Any, shape: BatchShape, rope: Rope, heads: int, attention: Attention
    ) -> tuple[torch.Tensor, At]:
        """What is to be added to the tokens, and by which gate."""
        query_key_value = self._operations.query_key_value(self._qkv(rows), self._norms, rope, shape, heads)
        attended = attention(*query_key_value)

        def matrix() -> torch.Tensor:
            return attended().flatten(0, 1)

        return self._operations.side_by_side(self._down, matrix, self._up, rows), self._gate


Block = TypeVar("Block", DoubleBlock, SingleBlock)


class _Places:
    """Gives each modulation layer its place in the one vector of all of them."""

    def __init__(self, width: int) -> None:
        self.layers: list[nn.Linear] = []
        self._width = width
        self._next = 0

    def take(self, layer: nn.Linear, count: int) -> list[At]:
        """Places of ``count`` quantities that hold for all tokens alike."""
        return [At(place, place) for place in self._take(layer, count)]

    def take_pair(self, text: nn.Linear, image: nn.Linear, count: int) -> list[At]:
        return [At(*pair) for pair in zip(self._take(text, count), self._take(image, count), strict=True)]

    def _take(self, layer: nn.Linear, count: int) -> list[int]:
        self.layers.append(layer)
        first, self._next = self._next, self._next + count * self._width
        return [first + number * self._width for number in range(count)]


def _adaptable(part: object) -> Iterator[Adaptable]:
    return (member for member in vars(part).values() if isinstance(member, Adaptable))


def _streams(joint: torch.Tensor, shape: BatchShape) -> torch.Tensor:
    """(rows, tokens, width) as a matrix with all texts first; no copy for one sample."""
    if shape.rows == 1:
        return joint[0]
    return torch.cat([joint[:, : shape.text].flatten(0, 1), joint[:, shape.text :].flatten(0, 1)])


def _joined(matrix: Any, shape: BatchShape) -> Any:
    """A matrix with all texts first as one with sample after sample; no copy for one sample."""
    if shape.rows == 1:
        return matrix
    place = torch.arange(shape.all_tokens, device=matrix.device)
    text, image = place[: shape.text_tokens], place[shape.text_tokens :]
    return matrix[torch.cat([text.unflatten(0, (shape.rows, -1)), image.unflatten(0, (shape.rows, -1))], 1).flatten()]
