"""Reads the header of a GGUF file and checks it against the file's size, without loading a tensor.

The layout is public: magic, version and two counts, the metadata as typed pairs, name, shape, type and place of each
tensor, padding, then the tensors' bytes. Every count and length is checked against what is left of the header before
anything is done so many times.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from safelight.errors import CheckpointInvalid
from safelight.tensor_header import BLOCKS, MAX_HEADER_BYTES, TensorEntry, TensorHeader

MAGIC = b"GGUF"

_VERSIONS = (2, 3)
_MAX_TENSORS = 5_000  # FLUX.1 has 780
_MAX_PAIRS = 5_000
_MAX_STRINGS = 20_000
"""In all arrays together."""

_MAX_DIMENSIONS = 4
_MAX_ALIGNMENT = 4096
_ALIGNMENT_KEY = "general.alignment"
_STRING, _ARRAY = 8, 9
_SCALARS: Mapping[int, struct.Struct] = {
    number: struct.Struct(f"<{letter}") for number, letter in enumerate("BbHhIif?")
} | {10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d")}
_DTYPES: Mapping[int, str] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    28: "F64",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}


def read_gguf_header(path: Path) -> TensorHeader:
    """Raises ``CheckpointInvalid``, naming the file, if it is missing, truncated, or no GGUF that can be read."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            reader = _Reader(path, file.read(MAX_HEADER_BYTES), file_bytes)
    except OSError as error:
        raise CheckpointInvalid(f"{path} cannot be read: {error.strerror}") from None
    tensor_count, pair_count = reader.beginning()
    metadata = reader.metadata(pair_count)
    alignment = metadata.get(_ALIGNMENT_KEY, 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= _MAX_ALIGNMENT or alignment.bit_count() != 1:
        raise CheckpointInvalid(f"{path} is not a GGUF file: its alignment is {alignment!r}")
    entries = dict(reader.tensor() for _ in range(tensor_count))
    if len(entries) != tensor_count:
        raise CheckpointInvalid(f"{path} is not a GGUF file: it names a tensor twice")
    data_start = math.ceil(reader.position / alignment) * alignment
    _check_places(path, entries, file_bytes - data_start, alignment)
    return TensorHeader(
        {name: entry.dtype for name, entry in entries.items()},
        sum(end - begin for begin, end in (entry.data_offsets for entry in entries.values())),
        entries,
        data_start,
        {name: value for name, value in metadata.items() if isinstance(value, str)},
    )


def _check_places(path: Path, entries: Mapping[str, TensorEntry], data_bytes: int, alignment: int) -> None:
    """Tensors lie apart, within the file, and fill it but for padding."""
    places = sorted(entry.data_offsets for entry in entries.values())
    end = max((end for _, end in places), default=0)
    data_bytes = max(data_bytes, 0)
    if end > data_bytes:
        raise CheckpointInvalid(f"{path} is truncated: it lacks {end - data_bytes} bytes of its tensors")
    gaps = [begin - end for (_, end), (begin, _) in pairwise([(0, 0), *places, (data_bytes, 0)])]
    if any(not 0 <= gap < alignment for gap in gaps):
        raise CheckpointInvalid(f"{path} is not a GGUF file: its tensors overlap or leave gaps")


class _Reader:
    """Takes a header apart, from its beginning on."""

    def __init__(self, path: Path, data: bytes, file_bytes: int) -> None:
        self.position = 0
        self._path = path
        self._data = data
        self._is_whole_file = len(data) >= file_bytes
        self._strings_left = _MAX_STRINGS

    def beginning(self) -> tuple[int, int]:
        """How many tensors and how many pairs of metadata there are."""
        if self._take(len(MAGIC)) != MAGIC:
            raise CheckpointInvalid(f"{self._path} is not a GGUF file")
        version = self._number("<I")
        if version not in _VERSIONS:
            raise CheckpointInvalid(f"{self._path} is of GGUF version {version}: versions 2 and 3 are read")
        tensor_count, pair_count = self._number("<Q"), self._number("<Q")
        if tensor_count > _MAX_TENSORS or pair_count > _MAX_PAIRS:
            raise CheckpointInvalid(
                f"{self._path} announces {tensor_count} tensors and {pair_count} pairs of metadata: "
                f"{_MAX_TENSORS} and {_MAX_PAIRS} at most"
            )
        return tensor_count, pair_count

    def metadata(self, pair_count: int) -> dict[str, Any]:
        """Arrays are left out."""
        found = {}
        for _ in range(pair_count):
            name, kind = self._string(), self._number("<I")
            if kind == _ARRAY:
                self._skip_array()
            else:
                found[name] = self._value(kind)
        return found

    def tensor(self) -> tuple[str, TensorEntry]:
        name, dimensions = self._string(), self._number("<I")
        if dimensions > _MAX_DIMENSIONS:
            raise CheckpointInvalid(f"{self._path} is not a GGUF file: {name} has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]
        kind, begin = self._number("<I"), self._number("<Q")
        dtype = _DTYPES.get(kind)
        if dtype is None:
            raise CheckpointInvalid(f"{self._path} has {name} in GGUF's number format {kind}, which is not read here")
        block = BLOCKS[dtype]
        values = math.prod(shape)
        if values % block.values or (shape and shape[-1] % block.values):
            raise CheckpointInvalid(f"{self._path} is not a GGUF file: {name} does not fill blocks of {dtype}")
        return name, TensorEntry(dtype, shape, (begin, begin + values // block.values * block.size_bytes))

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind not in _SCALARS:
            raise CheckpointInvalid(f"{self._path} is not a GGUF file: it has a value of type {kind}")
        (value,) = _SCALARS[kind].unpack(self._take(_SCALARS[kind].size))
        return value

    def _skip_array(self) -> None:
        kind, count = self._number("<I"), self._number("<Q")
        if kind in _SCALARS:
            self._take(count * _SCALARS[kind].size)
        elif kind == _STRING and count <= self._strings_left:
            self._strings_left -= count
            for _ in range(count):
                self._take(self._number("<Q"))
        else:
            raise CheckpointInvalid(f"{self._path} has metadata that no FLUX.1 transformer has: an array of {count}")

    def _string(self) -> str:
        return self._take(self._number("<Q")).decode("utf-8", "replace")

    def _number(self, layout: str) -> int:
        (number,) = struct.unpack(layout, self._take(struct.calcsize(layout)))
        return int(number)

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._data):
            if self._is_whole_file:
                raise CheckpointInvalid(f"{self._path} is truncated in its header, or not a GGUF file")
            raise CheckpointInvalid(f"{self._path} has a header of more than {MAX_HEADER_BYTES} bytes, or is damaged")
        taken = self._data[self.position : end]
        self.position = end
        return taken
