"""Builds a ready diffusers ``FluxPipeline`` from a checkpoint, component by component, counting bytes as they move.

The libraries' own progress bars end when the files are mapped, with nine tenths of the wait still to come. Here each
component is made by its own class's ``from_pretrained`` in the format of its file, then moved tensor by tensor.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import TYPE_CHECKING, Any

from safelight.checkpoint import Checkpoint, Component
from safelight.engine.load_report import LoadReport
from safelight.engine.sources import Source
from safelight.errors import CheckpointInvalid, DeviceUnavailable, NotEnoughMemory, SafelightError
from safelight.params import GenerationParams

if TYPE_CHECKING:
    import torch
    from diffusers import FluxPipeline

log = logging.getLogger(__name__)

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FILE_DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_FILE_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MEMORY_MARGIN = 1.1


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


def resolve_dtype(dtype: str, device: str) -> str:
    """``auto`` is bfloat16 on CUDA; on the CPU float32, since few CPUs are fast in less."""
    return dtype if dtype != "auto" else "bfloat16" if device.startswith("cuda") else "float32"


def check_memory(checkpoint: Checkpoint, device: str, dtype: str) -> None:
    """Raises ``DeviceUnavailable``, or ``NotEnoughMemory`` with the figures, before anything is read."""
    need_bytes = sum(
        component.weight_bytes * _DTYPE_BYTES[dtype] // _FILE_DTYPE_BYTES.get(component.dtype or "F32", 4)
        for component in checkpoint.components
    )
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

    target = torch.device(device)
    target_dtype: torch.dtype = getattr(torch, dtype)
    parts: dict[str, Any] = {}
    for component in checkpoint.components:
        with report.component(component.name, component.weight_bytes):
            with report.phase("weights"):
                parts[component.name] = _load_component(checkpoint, component)
            if component.weight_bytes:
                with report.phase("to_device"):
                    limit = report.bytes_done + component.weight_bytes
                    _move(parts[component.name], target, target_dtype, report, limit)
    pipeline = FluxPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def for_source(
    pipeline: FluxPipeline, params: GenerationParams, source: Source, seed: int
) -> tuple[Any, dict[str, Any]]:
    """The pipeline that changes a picture, over the same weights, and the arguments that only it takes."""
    import torch
    from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline

    made_by = FluxImg2ImgPipeline if source.mask is None else FluxInpaintPipeline
    changing = made_by(**pipeline.components)
    changing.set_progress_bar_config(disable=True)
    arguments = {
        "image": source.image,
        "strength": params.strength,
        "generator": torch.Generator("cpu").manual_seed(seed),
    }
    return changing, arguments if source.mask is None else arguments | {"mask_image": source.mask}


def _load_component(checkpoint: Checkpoint, component: Component) -> object:
    folder = checkpoint.path / component.name
    try:
        made_by = getattr(importlib.import_module(component.library), component.class_name)
        if not component.weight_bytes:
            return made_by.from_pretrained(folder, local_files_only=True)
        return _load_weights(made_by, folder, component)
    except (SafelightError, MemoryError):
        raise
    except Exception as error:
        log.exception("loading %s failed", folder)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointInvalid(f"{folder} could not be loaded as {component.class_name}: {reason}") from error


def _load_weights(made_by: Any, folder: os.PathLike[str], component: Component) -> object:
    import torch

    file_dtype = getattr(torch, _FILE_DTYPES.get(component.dtype or "", "float32"))
    model, info = made_by.from_pretrained(
        folder,
        torch_dtype=file_dtype,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    # Without this check the libraries leave a missing weight on the meta device or at a random value.
    for kind in ("missing_keys", "mismatched_keys"):
        if info[kind]:
            names = sorted(str(key) for key in info[kind])
            raise CheckpointInvalid(f"{folder} has {len(names)} {kind.replace('_', ' ')}, the first is {names[0]}")
    model.eval()
    return model


def _move(module: torch.nn.Module, device: torch.device, dtype: torch.dtype, report: LoadReport, limit: int) -> None:
    """Moves each tensor by itself. ``copy`` on the CPU too: reads the mapped file now, and lets go of it."""
    for tensor in [*module.parameters(), *module.buffers()]:
        source_bytes = tensor.numel() * tensor.element_size()
        wanted = dtype if tensor.is_floating_point() else tensor.dtype
        tensor.data = tensor.data.to(device=device, dtype=wanted, copy=True)
        report.moved(source_bytes, limit)
