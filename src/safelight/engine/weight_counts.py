"""How many numbers of a model are used how often: what memory can be saved with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from safelight.checkpoint import Checkpoint, Component

_DOUBLE_BLOCK, _SINGLE_BLOCK = 24, 12
"""Matrix elements of a block, in squares of the width: attention and MLP, for two streams or for one."""
_DOUBLE_MODULATION, _SINGLE_MODULATION = 6, 3
"""Quantities that a modulation layer gives, each a square matrix; a double block has one such layer a stream."""


@dataclass(frozen=True, slots=True)
class WeightCounts:
    """``blocks`` of the transformer work at every step; its ``modulations`` and the ``encoder_blocks`` of T5 once a
    picture; what is left, ``others``, is small or never idle. ``largest_*``: of the largest that comes by itself.
    """

    blocks: int
    largest_block: int
    modulations: int
    largest_modulation: int
    encoder_blocks: int
    largest_encoder_block: int
    others: int

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> WeightCounts:
        """From the files' JSON and headers."""
        parts = {part.name: part for part in checkpoint.components}
        flux, t5 = _config(parts["transformer"]), _config(parts["text_encoder_2"])
        square = (flux["num_attention_heads"] * flux["attention_head_dim"]) ** 2
        double_count, single_count = flux["num_layers"], flux["num_single_layers"]
        encoder_block = _encoder_block(t5)
        blocks = square * (double_count * _DOUBLE_BLOCK + single_count * _SINGLE_BLOCK)
        modulations = square * (double_count * 2 * _DOUBLE_MODULATION + single_count * _SINGLE_MODULATION)
        encoder_blocks = encoder_block * t5["num_layers"]
        return cls(
            blocks=blocks,
            largest_block=square * (_DOUBLE_BLOCK if double_count else _SINGLE_BLOCK),
            modulations=modulations,
            largest_modulation=square * (_DOUBLE_MODULATION if double_count else _SINGLE_MODULATION),
            encoder_blocks=encoder_blocks,
            largest_encoder_block=encoder_block,
            others=sum(part.weight_count for part in parts.values()) - blocks - modulations - encoder_blocks,
        )


def _encoder_block(t5: Mapping[str, Any]) -> int:
    width, inner = t5["d_model"], t5["num_heads"] * t5["d_kv"]
    mlp = 3 if "gated" in t5.get("feed_forward_proj", "gated-gelu") else 2
    return int(4 * width * inner + mlp * width * t5["d_ff"])


def _config(component: Component) -> Mapping[str, Any]:
    if component.config is not None:
        return component.config
    config: Mapping[str, Any] = msgspec.json.decode((component.folder / "config.json").read_bytes())
    return config
