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

if TYPE_CHECKING:
    from diffusers import FluxPipeline


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


def build_pipeline(
    checkpoint: Checkpoint, device: str, dtype: str, report: LoadReport, hosted: frozenset[str] = frozenset()
) -> FluxPipeline:
    """The pipeline, every weight accounted for: on ``device``, but for ``hosted`` components, which stay on the host.

    Raises a leaf of ``LoadError``.
    """
    import torch
    from diffusers import FluxPipeline

    place, number_format = torch.device(device), getattr(torch, dtype)
    pipeline = FluxPipeline(**load_components(checkpoint, place, number_format, report, hosted))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
