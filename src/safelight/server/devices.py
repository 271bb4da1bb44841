"""Which devices get a worker, found without importing torch."""

from __future__ import annotations

import itertools
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
    gpus = _gpus(dev)
    if setting == "auto":
        setting = "cuda" if gpus else "cpu"
    if setting == "cpu":
        return [Device("cpu", "cpu", {"CUDA_VISIBLE_DEVICES": ""})]
    if setting == "cuda":
        wanted = list(range(len(gpus))) or [0]
    else:
        wanted = [int(part) for part in setting.replace("cuda:", "").split(",")]
    # Each worker sees one GPU: what goes wrong on one context cannot touch another's.
    return [Device(f"cuda:{i}", "cuda:0", {"CUDA_VISIBLE_DEVICES": _visible_to_worker(i, gpus)}) for i in wanted]


def _visible_to_worker(index: int, gpus: list[str]) -> str:
    if index < len(gpus):
        return gpus[index]
    # The worker of a GPU that was hidden from us sees none, and says so. WSL has GPUs without /dev/nvidia*.
    return "" if "CUDA_VISIBLE_DEVICES" in os.environ else str(index)


def _gpus(dev: Path) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls each GPU, in CUDA's order. Like CUDA, nothing after a ``-1`` counts."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        parts = [part.strip() for part in visible.split(",") if part.strip()]
        return list(itertools.takewhile(lambda part: not part.startswith("-"), parts))
    # Only their number counts: a container that was given the third GPU has /dev/nvidia2, which CUDA calls 0.
    return [str(index) for index, _ in enumerate(path for path in dev.glob("nvidia*") if path.name[6:].isdigit())]
