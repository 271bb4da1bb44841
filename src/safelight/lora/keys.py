"""What the name of a tensor in an adapter's file says: of which layer it is, and which part of its change."""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple


class Part(Enum):
    """A layer's change is ``up @ down`` times alpha over the rank."""

    DOWN = "down"
    UP = "up"
    ALPHA = "alpha"


class Key(NamedTuple):
    """``layer`` as the file calls it, without what stands before every name."""

    layer: str
    part: Part
    is_text_encoder: bool = False


_PREFIX = re.compile(
    r"(?:base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|transformer\.|unet\.|lora_unet_|lora_transformer_)+"
)
_TEXT_ENCODERS = ("text_encoder", "text_model.", "lora_te", "te1.", "te2.", "clip_l.", "t5xxl.")
_PARTS = (
    (Part.DOWN, re.compile(r"\.(?:lora_A|lora_down|lora\.down)(?:\.[\w-]+)?\.weight$")),
    (Part.UP, re.compile(r"\.(?:lora_B|lora_up|lora\.up)(?:\.[\w-]+)?\.weight$")),
    (Part.DOWN, re.compile(r"(?:(?<=_lora)|(?<=_lora[12]))\.down\.weight$")),  # XLabs
    (Part.UP, re.compile(r"(?:(?<=_lora)|(?<=_lora[12]))\.up\.weight$")),
    (Part.ALPHA, re.compile(r"(?:\.lora_[AB])?\.alpha$")),
)
_OTHER_METHODS = (
    ("DoRA", re.compile(r"\.dora_scale$|lora_magnitude_vector")),
    ("LoKr", re.compile(r"\.lokr_")),
    ("LoHa", re.compile(r"\.hada_")),
    ("OFT", re.compile(r"\.oft_")),
    ("(IA)3", re.compile(r"\.ia3_|\.on_input$")),
    ("GLoRA or a full difference", re.compile(r"\.(?:diff|diff_b|[ab][12]\.weight)$")),
    ("LoRA with biases", re.compile(r"\.lora_[AB](?:\.[\w-]+)?\.bias$")),
    ("a LoRA with convolutions of rank (lora_mid)", re.compile(r"\.lora_mid\.")),
)


def parse_key(name: str) -> Key | None:
    """``None`` for a tensor that no LoRA adapter has."""
    for part, pattern in _PARTS:
        if found := pattern.search(name):
            prefix = _PREFIX.match(name)
            layer = name[prefix.end() if prefix else 0 : found.start()]
            return Key(layer, part, layer.startswith(_TEXT_ENCODERS))
    return None


def other_method(name: str) -> str | None:
    """The adapter method, other than LoRA, that has tensors of this name."""
    return next((method for method, pattern in _OTHER_METHODS if pattern.search(name)), None)
