"""Reads the header of a safetensors file and checks it against the file's size, without loading a tensor.

The layout is public: 8 bytes little-endian header length, a JSON header, then the tensors' bytes. The library opens a
file whose header announces 1.4 million empty tensors in 14 s and 2 GB; the limits here refuse it at once.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import msgspec

from safelight.errors import CheckpointInvalid
from safelight.tensor_header import MAX_HEADER_BYTES, MAX_TENSORS, TensorEntry, TensorHeader

_LENGTH = struct.Struct("<Q")
_MAX_COLONS = 5 * MAX_TENSORS
"""A tensor has four, in its name, dtype, shape and offsets; counting them is quicker than parsing."""


def read_header(path: Path) -> TensorHeader:
    """Raises ``CheckpointInvalid``, naming the file, if it is missing, truncated, or not safetensors."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            raw = _read_raw_header(path, file, file_bytes)
    except OSError as error:
        raise CheckpointInvalid(f"{path} cannot be read: {error.strerror}") from None
    entries, metadata = _parse(path, raw)
    weight_bytes = _laid_out(path, entries)
    data_start = _LENGTH.size + len(raw)
    expected_bytes = data_start + weight_bytes
    if file_bytes != expected_bytes:
        state = "truncated" if file_bytes < expected_bytes else "longer than its header says"
        raise CheckpointInvalid(f"{path} is {state}: {file_bytes} bytes of {expected_bytes}")
    dtypes = {name: entry.dtype for name, entry in entries.items()}
    return TensorHeader(dtypes, weight_bytes, entries, data_start, metadata)


def _read_raw_header(path: Path, file: BinaryIO, file_bytes: int) -> bytes:
    prefix = file.read(_LENGTH.size)
    if len(prefix) < _LENGTH.size:
        raise CheckpointInvalid(f"{path} is truncated: {file_bytes} bytes")
    (length,) = _LENGTH.unpack(prefix)
    if length > min(MAX_HEADER_BYTES, file_bytes - _LENGTH.size):
        raise CheckpointInvalid(f"{path} is not a safetensors file, or truncated in its header")
    return file.read(length)


def _laid_out(path: Path, entries: dict[str, TensorEntry]) -> int:
    """Bytes of all tensors, which lie one after the other."""
    position = 0
    for begin, end in sorted(entry.data_offsets for entry in entries.values()):
        if begin != position or end < begin:
            raise CheckpointInvalid(f"{path} is not a safetensors file: its tensors overlap or leave gaps")
        position = end
    return position


def _parse(path: Path, raw: bytes) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    if raw.count(b":") > _MAX_COLONS:
        raise CheckpointInvalid(f"{path} announces too many tensors: {MAX_TENSORS} at most")
    try:
        members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(members.pop("__metadata__", msgspec.Raw(b"{}")), type=dict[str, str])
        if len(members) > MAX_TENSORS:
            raise CheckpointInvalid(f"{path} announces {len(members)} tensors: {MAX_TENSORS} at most")
        return {name: msgspec.json.decode(member, type=TensorEntry) for name, member in members.items()}, metadata
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise CheckpointInvalid(f"{path} is not a safetensors file: its header is not readable") from None
