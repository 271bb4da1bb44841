"""What a transformer is, told from the shapes of its tensors: its config, and which FLUX.1 it belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from safelight.model_card import Family

_FLUX_HEAD_DIM = 128
_FLUX_AXES = (16, 56, 56)
_MASK_CHANNELS = 8 * 8 * 4
"""FLUX.1-Fill sees, of each 16 x 16 pixels, the masked latents and the mask of 8 x 8 pixels a latent."""


def transformer_config(shapes: Mapping[str, tuple[int, ...]], base: Mapping[str, Any]) -> dict[str, Any]:
    """As ``transformer/config.json`` of a directory. ``shapes`` are by diffusers' names; of ``base`` comes what no
    shape tells. Raises ``ValueError`` with what does not fit.
    """
    width, in_channels = _matrix(shapes, "x_embedder.weight")
    (head_dim,) = _shape(shapes, "transformer_blocks.0.attn.norm_q.weight", 1)
    if not head_dim or not width or width % head_dim:
        raise ValueError(f"{width} channels are no whole number of heads of {head_dim}")
    axes = base.get("axes_dims_rope", _FLUX_AXES)
    if not isinstance(axes, list | tuple) or sum(axes) != head_dim:
        if head_dim != _FLUX_HEAD_DIM:
            raise ValueError(f"its heads have {head_dim} channels, and the base model's see positions by {axes}")
        axes = _FLUX_AXES
    return {
        "patch_size": 1,
        "in_channels": in_channels,
        "out_channels": _matrix(shapes, "proj_out.weight")[0],
        "num_layers": block_count(shapes, "transformer_blocks"),
        "num_single_layers": block_count(shapes, "single_transformer_blocks"),
        "attention_head_dim": head_dim,
        "num_attention_heads": width // head_dim,
        "joint_attention_dim": _matrix(shapes, "context_embedder.weight")[1],
        "pooled_projection_dim": _matrix(shapes, "time_text_embed.text_embedder.linear_1.weight")[1],
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in shapes,
        "axes_dims_rope": list(axes),
    }


def block_count(names: Iterable[str], blocks: str) -> int:
    """How many blocks of a kind there are numbers for, in diffusers' names or others."""
    start = f"{blocks}."
    return len({name.removeprefix(start).partition(".")[0] for name in names if name.startswith(start)})


def family_of(config: Mapping[str, Any], hints: Iterable[str]) -> Family:
    """``hints`` are what the file and its metadata are called: the shapes of Kontext and Krea are those of dev.

    Raises ``ValueError`` for a model that is driven in a way that is not known here.
    """
    in_channels, out_channels = config["in_channels"], config["out_channels"]
    if in_channels == 2 * out_channels + _MASK_CHANNELS:
        return Family.FILL
    if in_channels != out_channels:
        raise ValueError(f"it takes {in_channels} channels, as FLUX.1 Canny and Depth do, which are not served")
    if not config["guidance_embeds"]:
        return Family.SCHNELL
    words = " ".join(hints).lower()
    return next((family for family in (Family.KONTEXT, Family.KREA) if family.value in words), Family.DEV)


def _matrix(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, int]:
    rows, columns = _shape(shapes, name, 2)
    return rows, columns


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str, dimensions: int) -> tuple[int, ...]:
    shape = shapes[name]
    if len(shape) != dimensions:
        raise ValueError(f"{name} has the shape {list(shape)}")
    return shape
