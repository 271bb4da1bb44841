"""What the tensors of FLUX.1's transformer are called: by Black Forest Labs, which ComfyUI follows, and by diffusers.

The names differ, three or four layers of diffusers are one of Black Forest Labs, and the last modulation has its two
halves in another order. It is all said here as data; ``convert_flux_transformer_checkpoint_to_diffusers`` of diffusers
is what it has to agree with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Share(NamedTuple):
    """Rows of a tensor that belong to one layer of diffusers: so many parts of all. ``halves_swapped``: its second half
    is the layer's first."""

    layer: str
    parts: int = 1
    halves_swapped: bool = False


@dataclass(frozen=True)
class Naming:
    """Layers by the names that a kind of file has, and what of each belongs to which of diffusers."""

    top: Mapping[str, tuple[Share, ...]]
    double_blocks: str
    double: Mapping[str, tuple[Share, ...]]
    single_blocks: str
    single: Mapping[str, tuple[Share, ...]]
    norm_parameter: str

    def shares(self, name: str) -> tuple[Share, ...]:
        """Where the rows of the tensor of this name belong, as full names of diffusers; none if it is unknown."""
        layer, _, parameter = name.rpartition(".")
        layers, layer, prefix = self._place(layer)
        if layer not in layers or parameter not in self._parameters(layer):
            return ()
        ending = "bias" if parameter == "bias" else "weight"
        return tuple(share._replace(layer=f"{prefix}{share.layer}.{ending}") for share in layers[layer])

    def names(self, double_count: int, single_count: int, *, guidance: bool) -> Iterator[str]:
        """All tensors of a transformer with so many blocks."""
        for layer in self.top:
            if guidance or "guidance" not in layer:
                yield from self._names(layer, "")
        for index in range(double_count):
            for layer in self.double:
                yield from self._names(layer, f"{self.double_blocks}.{index}.")
        for index in range(single_count):
            for layer in self.single:
                yield from self._names(layer, f"{self.single_blocks}.{index}.")

    def _place(self, layer: str) -> tuple[Mapping[str, tuple[Share, ...]], str, str]:
        """The table that a layer stands in, its name there, and what precedes that in diffusers."""
        match _BLOCK.fullmatch(layer):
            case re.Match() as found if found["blocks"] == self.double_blocks:
                return self.double, found["layer"], f"{_DOUBLE_BLOCKS}.{found['index']}."
            case re.Match() as found if found["blocks"] == self.single_blocks:
                return self.single, found["layer"], f"{_SINGLE_BLOCKS}.{found['index']}."
            case _:
                return self.top, layer, ""

    def _names(self, layer: str, prefix: str) -> Iterator[str]:
        for parameter in self._parameters(layer):
            yield f"{prefix}{layer}.{parameter}"

    def _parameters(self, layer: str) -> tuple[str, ...]:
        return (self.norm_parameter,) if _QK_NORM.search(layer) else ("weight", "bias")


_BLOCK = re.compile(r"(?P<blocks>[a-z_]+)\.(?P<index>0|[1-9][0-9]{0,3})\.(?P<layer>.+)", re.ASCII)
_QK_NORM = re.compile(r"(query|key)_norm$|attn\.norm_")
_DOUBLE_BLOCKS = "transformer_blocks"
_SINGLE_BLOCKS = "single_transformer_blocks"
_EMBEDDERS = {"time": "timestep", "vector": "text", "guidance": "guidance"}

BLACK_FOREST_LABS = Naming(
    top={
        "img_in": (Share("x_embedder"),),
        "txt_in": (Share("context_embedder"),),
        **{
            f"{name}_in.{layer}": (Share(f"time_text_embed.{embedder}_embedder.linear_{number}"),)
            for name, embedder in _EMBEDDERS.items()
            for number, layer in enumerate(("in_layer", "out_layer"), start=1)
        },
        # There it is shift and scale, in diffusers scale and shift.
        "final_layer.adaLN_modulation.1": (Share("norm_out.linear", halves_swapped=True),),
        "final_layer.linear": (Share("proj_out"),),
    },
    double_blocks="double_blocks",
    double={
        "img_mod.lin": (Share("norm1.linear"),),
        "txt_mod.lin": (Share("norm1_context.linear"),),
        "img_attn.qkv": (Share("attn.to_q"), Share("attn.to_k"), Share("attn.to_v")),
        "txt_attn.qkv": (Share("attn.add_q_proj"), Share("attn.add_k_proj"), Share("attn.add_v_proj")),
        "img_attn.norm.query_norm": (Share("attn.norm_q"),),
        "img_attn.norm.key_norm": (Share("attn.norm_k"),),
        "txt_attn.norm.query_norm": (Share("attn.norm_added_q"),),
        "txt_attn.norm.key_norm": (Share("attn.norm_added_k"),),
        "img_attn.proj": (Share("attn.to_out.0"),),
        "txt_attn.proj": (Share("attn.to_add_out"),),
        "img_mlp.0": (Share("ff.net.0.proj"),),
        "img_mlp.2": (Share("ff.net.2"),),
        "txt_mlp.0": (Share("ff_context.net.0.proj"),),
        "txt_mlp.2": (Share("ff_context.net.2"),),
    },
    single_blocks="single_blocks",
    single={
        "modulation.lin": (Share("norm.linear"),),
        "linear1": (Share("attn.to_q"), Share("attn.to_k"), Share("attn.to_v"), Share("proj_mlp", parts=4)),
        "norm.query_norm": (Share("attn.norm_q"),),
        "norm.key_norm": (Share("attn.norm_k"),),
        "linear2": (Share("proj_out"),),
    },
    norm_parameter="scale",
)


def _as_in_diffusers(layers: Mapping[str, tuple[Share, ...]]) -> dict[str, tuple[Share, ...]]:
    return {share.layer: (Share(share.layer),) for shares in layers.values() for share in shares}


DIFFUSERS = Naming(
    top=_as_in_diffusers(BLACK_FOREST_LABS.top),
    double_blocks=_DOUBLE_BLOCKS,
    double=_as_in_diffusers(BLACK_FOREST_LABS.double),
    single_blocks=_SINGLE_BLOCKS,
    single=_as_in_diffusers(BLACK_FOREST_LABS.single),
    norm_parameter="weight",
)
