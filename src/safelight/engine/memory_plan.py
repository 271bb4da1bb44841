"""Which parts of a model lie on the device and in which number format, chosen so that it fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from safelight.checkpoint import Checkpoint
from safelight.engine.options import EngineOptions, NumberFormat
from safelight.engine.weight_counts import WeightCounts
from safelight.errors import DeviceUnavailable, NotEnoughMemory

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FLOAT8_BYTES = 1
_HOST_MARGIN = 1.1
_WORKING_BYTES_PER_PIXEL = 3_000
_TILED_WORKING_BYTES_PER_PIXEL = 1_500
_SLOTS = 2
"""Of a ``WeightStream``: one group is used while the next is fetched."""


class MemoryMode(StrEnum):
    """How much of a model lies on a CUDA device all the time."""

    FULL = "full"
    LOW = "low"
    """T5 and the modulations, which are used once a picture, come from the host's memory; the VAE works in tiles."""
    OFFLOAD = "offload"
    """The blocks come from the host's memory too, at every step."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a model is going to need on the device, and pinned on the host, with room to draw its default size."""

    mode: MemoryMode
    number_format: NumberFormat
    device_bytes: int
    host_bytes: int

    @property
    def working_bytes_per_pixel(self) -> int:
        """The allowance, until it is measured."""
        return _WORKING_BYTES_PER_PIXEL if self.mode is MemoryMode.FULL else _TILED_WORKING_BYTES_PER_PIXEL

    @property
    def hosted(self) -> frozenset[str]:
        """The components that are loaded into the host's memory, from where they visit the device."""
        return frozenset() if self.mode is MemoryMode.FULL else frozenset({"text_encoder_2", "transformer"})

    def __str__(self) -> str:
        return f"{self.device_bytes / 1e9:.1f} GB in mode {self.mode} and {self.number_format}"


def plan_memory(checkpoint: Checkpoint, device: str, options: EngineOptions) -> MemoryPlan:
    """The first plan that fits, of those that the options allow: as few detours as possible, then fewer bits.

    Raises ``DeviceUnavailable``, or ``NotEnoughMemory`` with the figures, before any weight is read.
    """
    free_bytes, host_free_bytes = _free_bytes(device), _host_free_bytes()
    if options.memory_limit_bytes:
        free_bytes = min(free_bytes, options.memory_limit_bytes)
    plans = list(_plans(checkpoint, device, options))
    for plan in plans:
        if plan.device_bytes <= free_bytes and plan.host_bytes * _HOST_MARGIN <= host_free_bytes:
            return plan
    wanted = ", ".join(str(plan) for plan in plans)
    hosted = f", {host_free_bytes / 1e9:.1f} GB of the host's memory" if plans[-1].host_bytes else ""
    raise NotEnoughMemory(
        f"{checkpoint.card.id} needs about {wanted} on {device}, and {free_bytes / 1e9:.1f} GB{hosted} are free: "
        f"{_remedy(device, options)}"
    )


def _plans(checkpoint: Checkpoint, device: str, options: EngineOptions) -> Iterator[MemoryPlan]:
    """The best first."""
    formats = options.number_formats(device)
    if not device.startswith("cuda"):
        if options.memory not in ("auto", MemoryMode.FULL):
            raise DeviceUnavailable(f"--memory {options.memory} is for CUDA devices; the device is {device}")
        count = sum(part.weight_count for part in checkpoint.components)
        need_bytes = round(count * _DTYPE_BYTES[formats[0].dtype] * _HOST_MARGIN)
        yield MemoryPlan(MemoryMode.FULL, formats[0], need_bytes, 0)
        return
    counts = WeightCounts.of(checkpoint)
    pixels = checkpoint.card.default_width * checkpoint.card.default_height
    # Eight bits only where sixteen do not fit; but streamed at every step, the fewer the better.
    candidates = [(MemoryMode.FULL, formats[0])]
    candidates += [(MemoryMode.LOW, number_format) for number_format in formats]
    candidates += [(MemoryMode.OFFLOAD, number_format) for number_format in reversed(formats)]
    for mode, number_format in candidates:
        if options.memory in ("auto", mode):
            yield _plan(counts, mode, number_format, pixels)


def _plan(counts: WeightCounts, mode: MemoryMode, number_format: NumberFormat, pixels: int) -> MemoryPlan:
    """Sizes in bytes; what is streamed has two slots on the device."""
    wide = _DTYPE_BYTES[number_format.dtype]
    narrow = _FLOAT8_BYTES if number_format.is_float8 else wide
    once = (counts.encoder_blocks + counts.modulations) * wide
    blocks = counts.blocks * narrow
    if mode is MemoryMode.FULL:  # the blocks are narrowed after they have come to lie there
        device = (counts.others + counts.blocks) * wide + once + pixels * _WORKING_BYTES_PER_PIXEL
        return MemoryPlan(mode, number_format, device, 0)
    device = counts.others * wide + pixels * _TILED_WORKING_BYTES_PER_PIXEL
    device += _SLOTS * (counts.largest_encoder_block + counts.largest_modulation) * wide
    if mode is MemoryMode.LOW:
        return MemoryPlan(mode, number_format, device + blocks, once)
    return MemoryPlan(mode, number_format, device + _SLOTS * counts.largest_block * narrow, once + blocks)


def _remedy(device: str, options: EngineOptions) -> str:
    if not device.startswith("cuda") and not options.memory_limit_bytes:
        return "use a smaller dtype or a machine with more memory"
    if options.memory_limit_bytes:
        return "raise memory_limit_mb, or use a device with more memory"
    if options.memory != "auto" or options.precision == "bf16":
        return "leave --memory and --precision to auto, or use a device with more memory"
    return "end what else uses the device, or use one with more memory"


def _host_free_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _free_bytes(device: str) -> int:
    import torch

    if device == "cpu":
        return _host_free_bytes()
    if not torch.cuda.is_available():
        raise DeviceUnavailable(f"{device} is not there: torch sees no CUDA device; use --device cpu")
    try:
        return int(torch.cuda.mem_get_info(device)[0])
    except (RuntimeError, AssertionError):
        raise DeviceUnavailable(f"{device} is not there: torch sees {torch.cuda.device_count()} devices") from None
