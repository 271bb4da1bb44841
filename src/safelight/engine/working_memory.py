"""What a step takes of the memory beside the weights, measured, and so how large a step may be."""

from __future__ import annotations

from typing import Any

from safelight.engine.failures import is_out_of_memory
from safelight.engine.memory_plan import MemoryPlan
from safelight.errors import OutOfMemory
from safelight.params import GenerationParams
from safelight.protocol import Fit

_USED_SHARE = 0.9
"""Of what is free: the rest is for what allocating in pieces loses, and for latents of pictures that wait."""


def measure_step_bytes(model: Any, params: GenerationParams, device: str) -> float | None:
    """Bytes that the first step of all pictures takes for each pixel of each row; ``None`` where nothing counts them.

    To be called before anything of this size was drawn: a recorded step has its memory already.
    """
    if not device.startswith("cuda"):
        return None
    import torch

    drawings = model.begin(params, None)
    model.mark()()
    torch.cuda.reset_peak_memory_stats(device)
    before_bytes = torch.cuda.memory_allocated(device)
    try:
        model.step(drawings)
        model.mark()()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        model.free_memory()
        return None
    return float(torch.cuda.max_memory_allocated(device) - before_bytes) / (params.row_pixels * params.rows)


def fitted(plan: MemoryPlan, step_bytes: float | None, device: str, limit_bytes: int) -> Fit:
    """How the model was fitted, now that it is loaded. On a CPU without a limit there is none for a step: it swaps."""
    per_pixel = plan.working_bytes_per_pixel if step_bytes is None else step_bytes
    left_bytes = _left_bytes(plan, device, limit_bytes)
    max_pixels = 0 if left_bytes is None else max(int(left_bytes * _USED_SHARE / max(per_pixel, 1.0)), 1)
    return Fit(plan.mode.value, str(plan.number_format), plan.device_bytes, max_pixels, per_pixel, plan.note)


def _left_bytes(plan: MemoryPlan, device: str, limit_bytes: int) -> int | None:
    """To be called when caches are empty: what is reserved then belongs to weights and to recorded steps."""
    if not device.startswith("cuda"):
        return limit_bytes - plan.device_bytes if limit_bytes else None
    import torch

    free_bytes = int(torch.cuda.mem_get_info(device)[0])
    if limit_bytes:
        free_bytes = min(free_bytes, limit_bytes - torch.cuda.memory_reserved(device))
    return free_bytes - plan.adapter_bytes


def check_fits(params: GenerationParams, fit: Fit | None, device: str) -> None:
    """Raises ``OutOfMemory``, with the figures, for a picture that has no room even alone."""
    if fit is not None and not fit.has_room(params.step_pixels):
        raise OutOfMemory(fit.refusal(params.step_pixels, device))
