"""Builds a ready diffusers ``FluxPipeline`` from a checkpoint: the libraries, the memory it needs, its parts."""

from __future__ import annotations

import functools
import gc
import importlib
import os
from typing import TYPE_CHECKING

from safelight.checkpoint import Checkpoint
from safelight.engine.components import load_components
from safelight.engine.load_report import LoadReport
from safelight.errors import DeviceUnavailable, NotEnoughMemory

if TYPE_CHECKING:
    from diffusers import FluxPipeline

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_MEMORY_MARGIN = 1.1


@functools.cache
def import_libraries() -> None:
    """Imports torch, transformers and diffusers, quietly and offline; seconds of work that hold the GIL."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import diffusers
    import transformers

    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()  # its warnings quote prompts
    importlib.import_module("diffusers.pipelines.flux.pipeline_flux")
    importlib.import_module("diffusers.models.transformers.transformer_flux")
    # What is imported stays, so no later collection need look at it. Only once: a model must remain collectable.
    gc.freeze()


def resolve_dtype(dtype: str, device: str) -> str:
    """``auto`` is bfloat16 on CUDA; on the CPU float32, since few CPUs are fast in less."""
    return dtype if dtype != "auto" else "bfloat16" if device.startswith("cuda") else "float32"


def check_memory(checkpoint: Checkpoint, device: str, dtype: str) -> None:
    """Raises ``DeviceUnavailable``, or ``NotEnoughMemory`` with the figures, before anything is read."""
    need_bytes = sum(component.weight_count for component in checkpoint.components) * _DTYPE_BYTES[dtype]
    free_bytes = _free_bytes(device)
    if need_bytes * _MEMORY_MARGIN > free_bytes:
        raise NotEnoughMemory(
            f"{checkpoint.card.id} needs about {need_bytes * _MEMORY_MARGIN / 1e9:.1f} GB in {dtype} on {device}, "
            f"{free_bytes / 1e9:.1f} GB are free: use a smaller dtype or a device with more memory"
        )


def _free_bytes(device: str) -> int:
    import psutil
    import torch

    if device == "cpu":
        return int(psutil.virtual_memory().available)
    if not torch.cuda.is_available():
        raise DeviceUnavailable(f"{device} is not there: torch sees no CUDA device; use --device cpu")
    try:
        return int(torch.cuda.mem_get_info(device)[0])
    except (RuntimeError, AssertionError):
        raise DeviceUnavailable(f"{device} is not there: torch sees {torch.cuda.device_count()} devices") from None


def build_pipeline(checkpoint: Checkpoint, device: str, dtype: str, report: LoadReport) -> FluxPipeline:
    """The pipeline on ``device``, every weight accounted for. Raises a leaf of ``LoadError``."""
    import torch
    from diffusers import FluxPipeline

    pipeline = FluxPipeline(**load_components(checkpoint, torch.device(device), getattr(torch, dtype), report))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
