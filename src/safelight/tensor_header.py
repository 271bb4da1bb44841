"""What the headers of weight files have in common: names, number formats, shapes and places of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

MAX_HEADER_BYTES = 4 * 1024 * 1024
MAX_TENSORS = 20_000


class Block(NamedTuple):
    """The least piece of a number format: so many values take so many bytes."""

    values: int
    size_bytes: int


BLOCKS: Mapping[str, Block] = {
    "F64": Block(1, 8),
    "F32": Block(1, 4),
    "F16": Block(1, 2),
    "BF16": Block(1, 2),
    "F8_E4M3": Block(1, 1),
    "F8_E5M2": Block(1, 1),
    "I64": Block(1, 8),
    "I32": Block(1, 4),
    "I16": Block(1, 2),
    "I8": Block(1, 1),
    "U8": Block(1, 1),
    "BOOL": Block(1, 1),
    "Q4_0": Block(32, 18),
    "Q4_1": Block(32, 20),
    "Q5_0": Block(32, 22),
    "Q5_1": Block(32, 24),
    "Q8_0": Block(32, 34),
    "Q2_K": Block(256, 84),
    "Q3_K": Block(256, 110),
    "Q4_K": Block(256, 144),
    "Q5_K": Block(256, 176),
    "Q6_K": Block(256, 210),
    "IQ1_S": Block(256, 50),
    "IQ1_M": Block(256, 56),
    "IQ2_XXS": Block(256, 66),
    "IQ2_XS": Block(256, 74),
    "IQ2_S": Block(256, 82),
    "IQ3_XXS": Block(256, 98),
    "IQ3_S": Block(256, 110),
    "IQ4_NL": Block(32, 18),
    "IQ4_XS": Block(256, 136),
    "TQ1_0": Block(256, 54),
    "TQ2_0": Block(256, 66),
    "MXFP4": Block(32, 17),
}
"""The names are those of safetensors, and below the plain ones those of GGUF."""


class TensorEntry(msgspec.Struct, frozen=True):
    """What a header says of one tensor. ``data_offsets`` are its first byte and the one after its last, from
    ``TensorHeader.data_start`` on; in safetensors nobody has checked yet that they agree with dtype and shape."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class TensorHeader(msgspec.Struct, frozen=True):
    """``tensors`` maps each tensor's name to its dtype, ``entries`` to all that is known of it.

    ``weight_bytes`` is the size of all of them; they begin ``data_start`` bytes into the file. ``metadata`` is what the
    file says of itself in words.
    """

    tensors: dict[str, str]
    weight_bytes: int
    entries: dict[str, TensorEntry] = {}
    data_start: int = 0
    metadata: dict[str, str] = {}
