"""How the bytes of a file become values of a tensor, on whatever device the bytes lie."""

from __future__ import annotations

import functools
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safelight.checkpoint.stored_tensor import StoredTensor
from safelight.errors import CheckpointInvalid
from safelight.tensor_header import BLOCKS

if TYPE_CHECKING:
    import torch

_PLAIN = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
}
_SCALE = struct.Struct("<f")


class Encoding(Protocol):
    """A number format of files: so many values, ``block_values``, lie in ``block_bytes``."""

    @property
    def block_values(self) -> int: ...

    @property
    def block_bytes(self) -> int: ...

    @property
    def dtype(self) -> torch.dtype:
        """What decoding gives."""

    def decode(self, content: torch.Tensor) -> torch.Tensor:
        """One-dimensional, from bytes to values, on the device of the bytes."""


@dataclass(frozen=True, slots=True)
class Plain:
    """Numbers as PyTorch has them."""

    dtype: torch.dtype

    @property
    def block_values(self) -> int:
        return 1

    @property
    def block_bytes(self) -> int:
        return self.dtype.itemsize

    def decode(self, content: torch.Tensor) -> torch.Tensor:
        return content.view(self.dtype)


@dataclass(frozen=True, slots=True)
class Scaled:
    """Numbers of 8 bits, all of which are to be multiplied by ``scale``."""

    stored_as: torch.dtype
    scale: float

    @property
    def block_values(self) -> int:
        return 1

    @property
    def block_bytes(self) -> int:
        return self.stored_as.itemsize

    @property
    def dtype(self) -> torch.dtype:
        import torch

        return torch.float32

    def decode(self, content: torch.Tensor) -> torch.Tensor:
        return content.view(self.stored_as).to(self.dtype).mul_(self.scale)


@dataclass(frozen=True, slots=True)
class Quantised:
    """Blocks of GGUF, by its name for them."""

    name: str

    @property
    def block_values(self) -> int:
        return BLOCKS[self.name].values

    @property
    def block_bytes(self) -> int:
        return BLOCKS[self.name].size_bytes

    @property
    def dtype(self) -> torch.dtype:
        import torch

        return torch.float32

    def decode(self, content: torch.Tensor) -> torch.Tensor:
        """By diffusers' functions, which run on the device; the rarer formats by GGUF's own, which run on the host."""
        import numpy as np
        import torch
        from gguf.quants import dequantize

        kind, on_device = _gguf_format(self.name)
        if on_device is None:
            with np.errstate(all="ignore"):  # what is no number is found when all is there
                values = torch.from_numpy(dequantize(content.cpu().numpy(), kind)).to(content.device)
        else:
            blocks = content.reshape(-1, self.block_bytes)
            values = on_device(blocks, self.block_values, self.block_bytes, self.dtype)
        return values.reshape(-1)


@functools.cache
def _gguf_format(name: str) -> tuple[Any, Any]:
    os.environ["DIFFUSERS_GGUF_CUDA_KERNELS"] = "false"  # else importing it might fetch code
    from diffusers.quantizers.gguf.utils import dequantize_functions
    from gguf import GGMLQuantizationType

    kind = GGMLQuantizationType[name]
    return kind, dequantize_functions.get(kind)


def encoding_of(tensor: StoredTensor) -> Encoding:
    """Raises ``CheckpointInvalid`` if its scale cannot be read."""
    import torch

    if tensor.dtype not in _PLAIN:
        return Quantised(tensor.dtype)
    dtype = getattr(torch, _PLAIN[tensor.dtype])
    if tensor.scale_offset is None:
        return Plain(dtype)
    return Scaled(dtype, _read_scale(tensor.path, tensor.scale_offset))


def _read_scale(path: Path, offset: int) -> float:
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            (scale,) = _SCALE.unpack(file.read(_SCALE.size))
    except (OSError, struct.error):
        raise CheckpointInvalid(f"{path} became shorter while it was read") from None
    return float(scale)
