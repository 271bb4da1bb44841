"""Finds a model by whatever it is called, and reads what it is."""

from __future__ import annotations

import os
from pathlib import Path

from safelight.checkpoint.component import Checkpoint
from safelight.checkpoint.directory import open_directory
from safelight.checkpoint.single_file import with_base
from safelight.checkpoint.stand_in import STUB
from safelight.checkpoint.transformer_file import is_weight_file, read_transformer_file
from safelight.config import EMBEDDED_MODEL, STUB_MODEL
from safelight.errors import CheckpointInvalid, CheckpointNotFound
from safelight.hub.model_name import parse_model_name
from safelight.hub.snapshots import find_snapshot

_EMBEDDED_DIR = Path(__file__).parents[1] / "models" / "shapes"


def open_checkpoint(model: str, models_dir: Path | None = None, base_model: str | None = None) -> Checkpoint:
    """Finds and checks a model given as ``safelight/shapes``, as a directory or a file, or as it was pulled into
    ``models_dir``. A single file takes all but its transformer from ``base_model``.

    The bytes of weights are not looked at. Raises ``CheckpointNotFound`` or ``CheckpointInvalid`` with a sentence that
    names the file or the remedy.
    """
    if model == STUB_MODEL:
        return STUB
    path = _find(model, models_dir)
    if path.is_dir():
        return open_directory(path, model)
    file = read_transformer_file(path)
    if base_model is None:
        raise CheckpointNotFound(
            f"{path} has only a transformer: name a model for the text encoders and the VAE with --base-model, "
            "such as a directory of FLUX.1-schnell in diffusers layout or its name as it was pulled"
        )
    base = _find(base_model, models_dir)
    if not base.is_dir():
        raise CheckpointInvalid(f"the base model {base} is a single file: a directory in diffusers layout is needed")
    return with_base(file, model, base)


def _find(model: str, models_dir: Path | None) -> Path:
    # os.path, not pathlib: a name too long, an unknown ~user or a forbidden folder is "not there", not an exception.
    path = _EMBEDDED_DIR if model == EMBEDDED_MODEL else Path(os.path.expanduser(model))
    if os.path.isdir(path) or is_weight_file(path):
        return path
    name = parse_model_name(model)
    if name is None:
        raise CheckpointNotFound(
            f"there is no model {model!r}: give the directory of a FLUX.1 checkpoint in diffusers layout, "
            f"a safetensors or GGUF file of its transformer, or {EMBEDDED_MODEL!r} for the embedded one"
        )
    snapshot = None if models_dir is None else find_snapshot(models_dir, name)
    if snapshot is None:
        raise CheckpointNotFound(
            f"there is no model {model!r}, neither as a directory nor pulled: run `safelight pull {model}`, "
            f"or take {EMBEDDED_MODEL!r}, the embedded one"
        )
    return snapshot
