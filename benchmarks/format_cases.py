"""Seconds in which a transformer comes from the page cache to the device, by the number format of its file."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.adapter_cases import Put
from benchmarks.random_transformer_file import KINDS, write_transformer_file
from safelight.checkpoint import Checkpoint, open_checkpoint
from safelight.engine import pipelines
from safelight.engine.load_report import LoadReport

_REPEATS = 2


def measure_formats(model: str, device: str, folder: Path, put: Put) -> None:
    """The directory's own files first, in bfloat16; each file is written, loaded and deleted."""
    pipelines.import_libraries()
    plain = open_checkpoint(model)
    put({"format": "as it is", **_loaded(_transformer_of(plain), device)})
    config = json.loads((plain.path / "transformer" / "config.json").read_text())
    for kind in KINDS:
        start_s = time.perf_counter()
        path = write_transformer_file(folder, config, kind)
        written_s = time.perf_counter() - start_s
        try:
            checkpoint = _transformer_of(open_checkpoint(str(path), base_model=str(plain.path)))
            put({"format": kind, "written_s": written_s, **_loaded(checkpoint, device)})
        finally:
            path.unlink()


def _transformer_of(checkpoint: Checkpoint) -> Checkpoint:
    only = tuple(part for part in checkpoint.components if part.name == "transformer")
    return dataclasses.replace(checkpoint, components=only)


def _loaded(checkpoint: Checkpoint, device: str) -> dict[str, float | Sequence[float]]:
    """``file_gb_per_s`` counts the bytes that are read, ``model_gb_per_s`` those that they become."""
    times_s = [_load(checkpoint, device) for _ in range(_REPEATS)]
    best_s, part = min(times_s), checkpoint.components[0]
    return {
        "file_gb": part.weight_bytes / 1e9,
        "seconds": times_s,
        "file_gb_per_s": part.weight_bytes / best_s / 1e9,
        "model_gb_per_s": part.weight_count * 2 / best_s / 1e9,
    }


def _load(checkpoint: Checkpoint, device: str) -> float:
    import torch

    from safelight.engine.components import load_components

    report = LoadReport(1, checkpoint.weight_bytes, lambda _: None, threading.Event())
    place = torch.device(device)
    torch.zeros(1, device=place).sum().item()
    start_s = time.perf_counter()
    parts = load_components(checkpoint, place, torch.bfloat16, report)
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    seconds = time.perf_counter() - start_s
    del parts
    if place.type == "cuda":
        torch.cuda.empty_cache()
    return seconds
