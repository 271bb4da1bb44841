"""Which devices get a worker, found without importing torch."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safelight.errors import ConfigError

_THREADS = "OMP_NUM_THREADS"
"""What torch takes as the number of threads of its operations."""


@dataclass(frozen=True, slots=True)
class Device:
    """``name`` is what people see (``cuda:1``); the worker process sees ``torch_name`` under ``environment``.

    ``is_placed``: each process gets its device from the cluster that places it, and nobody else gets it meanwhile.
    """

    name: str
    torch_name: str
    environment: Mapping[str, str]
    is_placed: bool = False


def resolve_devices(setting: str, dev: Path = Path("/dev"), *, workers: int = 0) -> list[Device]:
    """One entry per worker for ``auto``, ``cpu``, ``cuda``, ``all`` or ``cuda:0,1``; ``auto`` is the CPU if no GPU is
    seen. ``workers`` is how many share the CPU; 0: one.

    Raises ``ConfigError`` if as many workers cannot be had: on CUDA there is one for each device.
    """
    gpus = _gpus(dev)
    if setting == "auto":
        setting = "cuda" if gpus else "cpu"
    if setting == "cpu":
        return _on_the_cpu(workers or 1)
    if setting in ("cuda", "all"):
        wanted = list(range(len(gpus))) or [0]
    else:
        wanted = [int(part) for part in setting.replace("cuda:", "").split(",")]
    if workers not in (0, len(wanted)):
        names = ", ".join(f"cuda:{i}" for i in wanted)
        raise ConfigError(
            f"--workers={workers} does not go with {names}: there is one worker for each CUDA device, "
            "and several only with --device cpu",
            param="workers",
        )
    # Each worker sees one GPU: what goes wrong on one context cannot touch another's.
    return [Device(f"cuda:{i}", "cuda:0", {"CUDA_VISIBLE_DEVICES": _visible_to_worker(i, gpus)}) for i in wanted]


def _on_the_cpu(workers: int) -> list[Device]:
    """Each of several gets its share of the cores, at least one, unless the environment says how many."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    if workers == 1:
        return [Device("cpu", "cpu", hidden)]
    share = {} if _THREADS in os.environ else {_THREADS: str(max(_cores() // workers, 1))}
    return [Device(f"cpu:{index}", "cpu", hidden | share) for index in range(workers)]


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
