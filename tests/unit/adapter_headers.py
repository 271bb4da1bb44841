"""LoRA adapter files whose headers say something, with holes where their tensors would be."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

from safelight.lora.layers import Size

DTYPE_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1}

Shapes = dict[str, tuple[int, ...]]


def pair(layer: str, size: Size, rank: int = 4) -> Shapes:
    """Both matrices of a layer, in diffusers' words."""
    return {
        f"transformer.{layer}.lora_A.weight": (rank, size.in_features),
        f"transformer.{layer}.lora_B.weight": (size.out_features, rank),
    }


def write_header(
    path: Path, shapes: Mapping[str, tuple[int, ...]], *, dtype: str = "F16", metadata: dict[str, str] | None = None
) -> Path:
    """A file of the right length that takes no space."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    place = 0
    for name, shape in shapes.items():
        end = place + math.prod(shape) * DTYPE_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, end]}
        place = end
    raw = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + place)
    return path
