"""A single file with a FLUX transformer of random numbers: FP8 as safetensors, or GGUF in Q8_0 or Q4_K.

The blocks of GGUF are random bytes with small scales: they decode as fast as real ones.
"""

from __future__ import annotations

import json
import math
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_checkpoint import Shapes, shapes_of
from safelight.tensor_header import BLOCKS

_ALIGNMENT = 32
_GGUF_KINDS = {"F32": 0, "Q8_0": 8, "Q4_K": 12}
_SCALES = {"Q8_0": 1, "Q4_K": 2}
"""How many half-precision numbers a block begins with."""

_SCALE = 0.0005
_TEXT_VALUE = 8
KINDS = ("fp8", "Q8_0", "Q4_K")


def write_transformer_file(folder: Path, config: Mapping[str, Any], kind: str) -> Path:
    """One of ``KINDS``; one tensor after the other, so that hardly more than the largest is in memory."""
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(config))
        shapes = shapes_of(Path(scratch), {"_class_name": "FluxTransformer2DModel", **config})
    path = folder / f"transformer-{kind}.{'safetensors' if kind == 'fp8' else 'gguf'}"
    dtypes = {name: _dtype(kind, shape) for name, shape in shapes.items()}
    header = _safetensors_header if kind == "fp8" else _gguf_header
    generator = torch.Generator("cuda" if torch.cuda.is_available() else "cpu").manual_seed(0)
    with path.open("wb") as file:
        file.write(header(shapes, dtypes))
        for name, shape in shapes.items():
            content = _content(dtypes[name], shape, generator)
            file.write(content.cpu().numpy().data)
            if kind != "fp8":
                file.write(bytes(-content.numel() % _ALIGNMENT))
    return path


def _dtype(kind: str, shape: list[int]) -> str:
    """Matrices are quantised where rows are whole blocks."""
    if kind == "fp8":
        return "F8_E4M3" if len(shape) == 2 else "BF16"
    return kind if len(shape) == 2 and shape[1] % BLOCKS[kind].values == 0 else "F32"


def _size_bytes(dtype: str, shape: list[int]) -> int:
    return math.prod(shape) // BLOCKS[dtype].values * BLOCKS[dtype].size_bytes


def _content(dtype: str, shape: list[int], generator: torch.Generator) -> torch.Tensor:
    """Its bytes."""
    device = generator.device
    if dtype in _SCALES:
        count = math.prod(shape) // BLOCKS[dtype].values
        blocks = torch.empty(count, BLOCKS[dtype].size_bytes, dtype=torch.uint8, device=device)
        blocks.random_(0, 256, generator=generator)
        scale = torch.full((_SCALES[dtype],), _SCALE, dtype=torch.float16, device=device)
        blocks[:, : 2 * _SCALES[dtype]] = scale.view(torch.uint8)
        return blocks.view(-1)
    values = torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02, generator=generator)
    wanted = {"F8_E4M3": torch.float8_e4m3fn, "BF16": torch.bfloat16, "F32": torch.float32}[dtype]
    return values.to(wanted).view(-1).view(torch.uint8)


def _safetensors_header(shapes: Shapes, dtypes: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + _size_bytes(dtypes[name], shape)
        entries[name] = {"dtype": dtypes[name], "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header


def _gguf_header(shapes: Shapes, dtypes: Mapping[str, str]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(shapes), 1), _string("general.architecture")]
    parts += [struct.pack("<I", _TEXT_VALUE), _string("flux")]
    place = 0
    for name, shape in shapes.items():
        parts += [_string(name), struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))]
        parts.append(struct.pack("<IQ", _GGUF_KINDS[dtypes[name]], place))
        place += _aligned(_size_bytes(dtypes[name], shape))
    header = b"".join(parts)
    return header + bytes(-len(header) % _ALIGNMENT)


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
