"""The linear layers of a FLUX transformer, told from its config, and what other projects call them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


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

_BLOCKS: dict[str, tuple[str, ...]] = {
    "double_blocks.{}.img_mod.lin": ("transformer_blocks.{}.norm1.linear",),
    "double_blocks.{}.txt_mod.lin": ("transformer_blocks.{}.norm1_context.linear",),
    "double_blocks.{}.img_attn.qkv": tuple(f"transformer_blocks.{{}}.attn.to_{name}" for name in "qkv"),
    "double_blocks.{}.txt_attn.qkv": tuple(f"transformer_blocks.{{}}.attn.add_{name}_proj" for name in "qkv"),
    "double_blocks.{}.img_attn.proj": ("transformer_blocks.{}.attn.to_out.0",),
    "double_blocks.{}.txt_attn.proj": ("transformer_blocks.{}.attn.to_add_out",),
    "double_blocks.{}.img_mlp.0": ("transformer_blocks.{}.ff.net.0.proj",),
    "double_blocks.{}.img_mlp.2": ("transformer_blocks.{}.ff.net.2",),
    "double_blocks.{}.txt_mlp.0": ("transformer_blocks.{}.ff_context.net.0.proj",),
    "double_blocks.{}.txt_mlp.2": ("transformer_blocks.{}.ff_context.net.2",),
    "single_blocks.{}.modulation.lin": ("single_transformer_blocks.{}.norm.linear",),
    "single_blocks.{}.linear1": (
        *(f"single_transformer_blocks.{{}}.attn.to_{name}" for name in "qkv"),
        "single_transformer_blocks.{}.proj_mlp",
    ),
    "single_blocks.{}.linear2": ("single_transformer_blocks.{}.proj_out",),
    # XLabs
    "double_blocks.{}.processor.qkv_lora1": tuple(f"transformer_blocks.{{}}.attn.to_{name}" for name in "qkv"),
    "double_blocks.{}.processor.qkv_lora2": tuple(f"transformer_blocks.{{}}.attn.add_{name}_proj" for name in "qkv"),
    "double_blocks.{}.processor.proj_lora1": ("transformer_blocks.{}.attn.to_out.0",),
    "double_blocks.{}.processor.proj_lora2": ("transformer_blocks.{}.attn.to_add_out",),
    "single_blocks.{}.processor.qkv_lora": tuple(f"single_transformer_blocks.{{}}.attn.to_{name}" for name in "qkv"),
    "single_blocks.{}.processor.proj_lora": ("single_transformer_blocks.{}.proj_out",),
}
_OTHERS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
_SWAPPED = frozenset({"final_layer.adaLN_modulation.1"})


def targets_by_name(layers: Layers) -> dict[str, tuple[Target, ...]]:
    """What each name that an adapter may have for a layer stands for: diffusers' names, Black Forest Labs', XLabs',
    and all of them as Kohya writes them, with underscores. Several targets lie one after the other in the output.
    """
    found: dict[str, tuple[Target, ...]] = {name: (Target(name),) for name in layers}
    for name, layer in _OTHERS.items():
        found[name] = (Target(layer, name in _SWAPPED),)
    for index in range(sum(name.endswith(".norm1.linear") for name in layers)):
        found |= _numbered("double", index)
    for index in range(sum(name.endswith(".norm.linear") for name in layers)):
        found |= _numbered("single", index)
    found = {name: targets for name, targets in found.items() if all(target.layer in layers for target in targets)}
    return found | {name.replace(".", "_"): targets for name, targets in found.items()}


def _numbered(kind: str, index: int) -> dict[str, tuple[Target, ...]]:
    return {
        name.format(index): tuple(Target(layer.format(index)) for layer in layers)
        for name, layers in _BLOCKS.items()
        if name.startswith(kind)
    }
