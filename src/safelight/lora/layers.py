"""The linear layers of a FLUX transformer, told from its config, and what other projects call them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from safelight.checkpoint import Checkpoint
from safelight.checkpoint.flux_names import BLACK_FOREST_LABS


class Size(NamedTuple):
    """Of one linear layer."""

    in_features: int
    out_features: int


class Target(NamedTuple):
    """A layer that an adapter's name stands for. ``is_swapped``: shift and scale of its output lie the other way."""

    layer: str
    is_swapped: bool = False


Layers = Mapping[str, Size]
"""By diffusers' names."""

_FREQUENCIES = 256
"""Of the sinusoids by which diffusers tells the transformer a time; not in its config."""

_WEIGHT = ".weight"


def checkpoint_layers(checkpoint: Checkpoint) -> dict[str, Size]:
    """Of a checkpoint's transformer; none if its config is not readable."""
    transformer = next(part for part in checkpoint.components if part.name == "transformer")
    try:
        if transformer.config is not None:
            return flux_layers(transformer.config)
        config = (transformer.folder / "config.json").read_bytes()
        return flux_layers(msgspec.json.decode(config, type=dict[str, Any]))
    except (OSError, TypeError, ValueError, msgspec.MsgspecError):
        return {}


def flux_layers(config: Mapping[str, Any]) -> dict[str, Size]:
    """Every linear layer that diffusers' ``FluxTransformer2DModel`` makes of ``config``.

    Raises ``TypeError`` or ``ValueError`` if that is none.
    """

    def number(name: str, default: int) -> int:
        value = config.get(name)
        return default if value is None else int(value)

    width = number("num_attention_heads", 24) * number("attention_head_dim", 128)
    channels = number("in_channels", 64)
    out = number("patch_size", 1) ** 2 * number("out_channels", channels)
    layers = {"x_embedder": Size(channels, width), "context_embedder": Size(number("joint_attention_dim", 4096), width)}
    conditions = {"timestep": _FREQUENCIES, "text": number("pooled_projection_dim", 768)}
    if config.get("guidance_embeds"):
        conditions["guidance"] = _FREQUENCIES
    for name, features in conditions.items():
        layers[f"time_text_embed.{name}_embedder.linear_1"] = Size(features, width)
        layers[f"time_text_embed.{name}_embedder.linear_2"] = Size(width, width)
    for index in range(number("num_layers", 19)):
        layers |= {f"transformer_blocks.{index}.{name}": size for name, size in _double(width)}
    for index in range(number("num_single_layers", 38)):
        layers |= {f"single_transformer_blocks.{index}.{name}": size for name, size in _single(width)}
    return layers | {"norm_out.linear": Size(width, 2 * width), "proj_out": Size(width, out)}


def _double(width: int) -> Iterator[tuple[str, Size]]:
    for norm, attention, forward in (
        ("norm1", ("to_q", "to_k", "to_v", "to_out.0"), "ff"),
        ("norm1_context", ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"), "ff_context"),
    ):
        yield f"{norm}.linear", Size(width, 6 * width)
        yield from ((f"attn.{name}", Size(width, width)) for name in attention)
        yield f"{forward}.net.0.proj", Size(width, 4 * width)
        yield f"{forward}.net.2", Size(4 * width, width)


def _single(width: int) -> Iterator[tuple[str, Size]]:
    yield "norm.linear", Size(width, 3 * width)
    yield from ((f"attn.{name}", Size(width, width)) for name in ("to_q", "to_k", "to_v"))
    yield "proj_mlp", Size(width, 4 * width)
    yield "proj_out", Size(5 * width, width)


# --- other names --------------------------------------------------------------------------------------------------

_XLABS = {
    "transformer_blocks.{}.attn": {
        "double_blocks.{}.processor.qkv_lora1": ("to_q", "to_k", "to_v"),
        "double_blocks.{}.processor.qkv_lora2": ("add_q_proj", "add_k_proj", "add_v_proj"),
        "double_blocks.{}.processor.proj_lora1": ("to_out.0",),
        "double_blocks.{}.processor.proj_lora2": ("to_add_out",),
    },
    "single_transformer_blocks.{}": {
        "single_blocks.{}.processor.qkv_lora": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "single_blocks.{}.processor.proj_lora": ("proj_out",),
    },
}


def targets_by_name(layers: Layers) -> dict[str, tuple[Target, ...]]:
    """What each name that an adapter may have for a layer stands for: diffusers' names, Black Forest Labs', XLabs',
    and all of them as Kohya writes them, with underscores. Several targets lie one after the other in the output.
    """
    double = sum(name.endswith(".norm1.linear") for name in layers)
    single = sum(name.endswith(".norm.linear") for name in layers)
    found: dict[str, tuple[Target, ...]] = {name: (Target(name),) for name in layers}
    for name in BLACK_FOREST_LABS.names(double, single, guidance=True):
        if name.endswith(_WEIGHT):
            shares = BLACK_FOREST_LABS.shares(name)
            found[name.removesuffix(_WEIGHT)] = tuple(
                Target(share.layer.removesuffix(_WEIGHT), share.halves_swapped) for share in shares
            )
    for index in range(max(double, single)):
        for block, names in _XLABS.items():
            for name, parts in names.items():
                found[name.format(index)] = tuple(Target(f"{block.format(index)}.{part}") for part in parts)
    found = {name: targets for name, targets in found.items() if all(target.layer in layers for target in targets)}
    return found | {name.replace(".", "_"): targets for name, targets in found.items()}
