"""Which parts of a model lie on the device and in which number format, chosen so that it fits."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from safelight.checkpoint import Checkpoint
from safelight.engine.options import EngineOptions, NumberFormat
from safelight.engine.weight_counts import WeightCounts
from safelight.errors import DeviceUnavailable, InvalidRequest, NotEnoughMemory
from safelight.lora.adapter_file import Piece
from safelight.lora.directory import AdapterDirectories
from safelight.lora.layers import checkpoint_layers

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FLOAT8_BYTES = 1
_HOST_MARGIN = 1.1
_WORKING_BYTES_PER_PIXEL = 3_000
_TILED_WORKING_BYTES_PER_PIXEL = 1_500
_FUSED = 3
"""Times what adapters have by themselves: what queries, keys, values and MLP in one product make of it."""

_OWN_SHARE = 0.98
"""Of a device's memory: what it has when nobody else uses it."""

_PATIENCE_S, _LOOK_AGAIN_S = 2.0, 0.2

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
    """What a model is going to need on the device, and pinned on the host, with room to draw its default size.

    ``adapter_bytes`` of it are kept for LoRA adapters. ``note`` says why it is not a faster one, if another time it
    could be; it is empty if not.
    """

    mode: MemoryMode
    number_format: NumberFormat
    device_bytes: int
    host_bytes: int
    adapter_bytes: int = 0
    note: str = ""

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
    (free_bytes, total_bytes), host_free_bytes = _free_and_all_bytes(device), _host_free_bytes()
    if options.memory_limit_bytes:
        free_bytes, total_bytes = (min(size, options.memory_limit_bytes) for size in (free_bytes, total_bytes))
    plans = list(_plans(checkpoint, device, options))
    for plan in plans:
        if plan.device_bytes <= free_bytes and plan.host_bytes * _HOST_MARGIN <= host_free_bytes:
            return replace(plan, note=_note(plan, plans[0], free_bytes, total_bytes))
    wanted = ", ".join(str(plan) for plan in plans)
    hosted = f", {host_free_bytes / 1e9:.1f} GB of the host's memory" if plans[-1].host_bytes else ""
    raise NotEnoughMemory(
        f"{checkpoint.card.id} needs about {wanted} on {device}, and {free_bytes / 1e9:.1f} GB{hosted} are free: "
        f"{_remedy(device, options)}"
    )


def plan_patiently(checkpoint: Checkpoint, device: str, options: EngineOptions) -> MemoryPlan:
    """As ``plan_memory``; where memory lacks, it looks again for a while: a process that ends lets go of it late."""
    end_s = time.monotonic() + (_PATIENCE_S if device.startswith("cuda") else 0.0)
    while True:
        is_last = time.monotonic() >= end_s
        try:
            plan = plan_memory(checkpoint, device, options)
            if is_last or not plan.note:
                return plan
        except NotEnoughMemory:
            if is_last:
                raise
        time.sleep(_LOOK_AGAIN_S)


def _note(plan: MemoryPlan, best: MemoryPlan, free_bytes: float, total_bytes: float) -> str:
    if plan.mode is best.mode or best.device_bytes > total_bytes * _OWN_SHARE:
        return ""
    return (
        f"it takes about {plan}, since {free_bytes / 1e9:.1f} of {total_bytes / 1e9:.1f} GB were free when it was "
        f"loaded: {best} is faster; load it again when nothing else uses the device"
    )


def _plans(checkpoint: Checkpoint, device: str, options: EngineOptions) -> Iterator[MemoryPlan]:
    """The best first."""
    formats = options.number_formats(device)
    if not device.startswith("cuda"):
        # The host's memory is the device's: nothing need visit it, but may, so that each mode can be tried anywhere.
        mode = MemoryMode.FULL if options.memory == "auto" else MemoryMode(options.memory)
        count = sum(part.weight_count for part in checkpoint.components)
        need_bytes = round(count * _DTYPE_BYTES[formats[0].dtype] * _HOST_MARGIN)
        yield MemoryPlan(mode, formats[0], need_bytes, 0)
        return
    counts, adapter_bytes = WeightCounts.of(checkpoint), _adapter_bytes(checkpoint, options)
    pixels = checkpoint.card.default_width * checkpoint.card.default_height
    # Eight bits only where sixteen do not fit; but streamed at every step, the fewer the better.
    candidates = [(MemoryMode.FULL, formats[0])]
    candidates += [(MemoryMode.LOW, number_format) for number_format in formats]
    candidates += [(MemoryMode.OFFLOAD, number_format) for number_format in reversed(formats)]
    for mode, number_format in candidates:
        if options.memory in ("auto", mode):
            plan = _plan(counts, mode, number_format, pixels)
            yield replace(plan, device_bytes=plan.device_bytes + adapter_bytes, adapter_bytes=adapter_bytes)


def _adapter_bytes(checkpoint: Checkpoint, options: EngineOptions) -> int:
    """What the largest adapter takes beside the weights, in two bytes a number. Layers that are one product here have
    one for its adapters too, mostly zeros.
    """
    directories, layers = AdapterDirectories.of(checkpoint, options.loras_dir), checkpoint_layers(checkpoint)
    counts = [0]
    for name in directories.names():
        with contextlib.suppress(InvalidRequest):  # whoever asks for it is told what is wrong with it
            counts.append(sum(_numbers(piece) for piece in directories.read(name).pieces(layers)))
    return max(counts) * _FUSED * _DTYPE_BYTES["bfloat16"]


def _numbers(piece: Piece) -> int:
    return piece.source.rank * (piece.source.in_features + piece.rows)


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


def _free_and_all_bytes(device: str) -> tuple[int, int]:
    import torch

    if device == "cpu":
        return _host_free_bytes(), _host_free_bytes()
    if not torch.cuda.is_available():
        raise DeviceUnavailable(f"{device} is not there: torch sees no CUDA device; use --device cpu")
    try:
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        return int(free_bytes), int(total_bytes)
    except (RuntimeError, AssertionError):
        raise DeviceUnavailable(f"{device} is not there: torch sees {torch.cuda.device_count()} devices") from None
