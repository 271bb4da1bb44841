"""Which devices get a worker, found without importing torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Device:
    """``name`` is what people see (``cuda:1``); the worker process sees ``torch_name`` under ``environment``."""

    name: str
    torch_name: str
    environment: Mapping[str, str]


def resolve_devices(setting: str, dev: Path = Path("/dev")) -> list[Device]:
    """One entry per worker for ``auto``, ``cpu``, ``cuda`` or ``cuda:0,1``; ``auto`` is the CPU if no GPU is seen."""
    if setting == "auto":
        setting = "cuda" if _cuda_indices(dev) else "cpu"
    if setting == "cpu":
        return [Device("cpu", "cpu", {"CUDA_VISIBLE_DEVICES": ""})]
    if setting == "cuda":
        indices = _cuda_indices(dev) or ["0"]
    else:
        visible = _visible_indices()
        wanted = [int(part) for part in setting.replace("cuda:", "").split(",")]
        indices = [visible[i] if visible and i < len(visible) else str(i) for i in wanted]
    # Each worker sees one GPU: what goes wrong on one context cannot touch another's.
    return [Device(f"cuda:{index}", "cuda:0", {"CUDA_VISIBLE_DEVICES": index}) for index in indices]


def _visible_indices() -> list[str] | None:
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _cuda_indices(dev: Path) -> list[str]:
    visible = _visible_indices()
    if visible is not None:
        return visible
    found = (path.name.removeprefix("nvidia") for path in dev.glob("nvidia[0-9]*"))
    return sorted((index for index in found if index.isdigit()), key=int)
