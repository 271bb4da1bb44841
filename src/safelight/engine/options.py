"""What an engine may be told about how to run a model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from safelight.errors import DeviceUnavailable

_FIRST_WITH_FLOAT8 = (8, 9)


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """``dtype`` by torch's name; ``is_float8``: the products of the transformer's blocks are in eight bits."""

    dtype: str
    is_float8: bool = False

    def __str__(self) -> str:
        return "fp8" if self.is_float8 else self.dtype


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """As the settings of the same names; ``cache_dir`` keeps compiled kernels over restarts, ``loras_dir`` has LoRA
    adapters beside those that come with the model.
    """

    dtype: str = "auto"
    precision: str = "auto"
    memory: str = "auto"
    step_cache: int = 1
    batch_limit: int = 0
    cache_dir: str = ""
    loras_dir: str = ""
    lora_cache_mb: int = 1024
    memory_limit_mb: int = 0

    @property
    def memory_limit_bytes(self) -> int:
        """0: none."""
        return self.memory_limit_mb * 1_000_000

    def prepare_process(self) -> None:
        """To be called before torch is imported, which reads these once."""
        if self.cache_dir:
            os.environ["TRITON_CACHE_DIR"] = str(Path(self.cache_dir) / "triton")
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(self.cache_dir) / "inductor")

    def number_formats(self, device: str) -> list[NumberFormat]:
        """Those that are allowed, the most exact first. Raises ``DeviceUnavailable`` for one that the device lacks.

        By itself it is bfloat16 on CUDA, in eight bits where it must be; on the CPU float32, since few CPUs are fast
        in less.
        """
        is_cuda = device.startswith("cuda")
        if self.precision == "fp8":
            _check_float8(device)
            return [NumberFormat("bfloat16", is_float8=True)]
        if self.precision == "bf16":
            return [NumberFormat("bfloat16")]
        if self.dtype != "auto":
            return [NumberFormat(self.dtype)]
        if not is_cuda:
            return [NumberFormat("float32")]
        wide = NumberFormat("bfloat16")
        return [wide, NumberFormat("bfloat16", is_float8=True)] if _has_float8(device) else [wide]


def _has_float8(device: str) -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.get_device_capability(device) >= _FIRST_WITH_FLOAT8


def _check_float8(device: str) -> None:
    import torch

    if not device.startswith("cuda") or not torch.cuda.is_available():
        raise DeviceUnavailable(f"--precision fp8 needs a CUDA card, Ada or Hopper or later; the device is {device}")
    capability = torch.cuda.get_device_capability(device)
    if capability < _FIRST_WITH_FLOAT8:
        raise DeviceUnavailable(
            f"--precision fp8 needs a card of compute capability 8.9 or more; {device} has "
            f"{capability[0]}.{capability[1]}: use --precision bf16"
        )
