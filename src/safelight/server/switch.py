"""One device going over from one model to another: in which order, why so, and what came of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import psutil

from safelight.logs import rfc3339
from safelight.protocol import Memory
from safelight.server.served_model import ServedModel

_WEIGHTS_MARGIN = 1.25
_WORK_BYTES = {"cuda": 6_000_000_000, "cpu": 1_000_000_000}
"""What a process takes beside its weights: its libraries and context, and the tensors of a warm-up picture."""


@dataclass(slots=True)
class Switch:
    """``keeps_serving``: the old model serves until the new one is ready; else it ends first. ``reason`` says why."""

    old: str
    new: str
    keeps_serving: bool
    reason: str
    error: str | None = None
    seconds: float | None = None
    began_s: float = field(default_factory=time.time)
    _began_s: float = field(default_factory=time.monotonic)

    def end(self, error: str | None = None) -> None:
        """It is over; with an ``error``, the old model stays or comes back."""
        self.error = error
        self.seconds = time.monotonic() - self._began_s

    @property
    def is_over(self) -> bool:
        return self.seconds is not None

    def as_json(self) -> dict[str, Any]:
        """As ``/v1/status`` tells it."""
        return {
            "from": self.old,
            "to": self.new,
            "state": "running" if not self.is_over else "failed" if self.error else "done",
            "keeps_serving": self.keeps_serving,
            "reason": self.reason,
            "error": self.error,
            "began_at": rfc3339(self.began_s),
            "seconds": None if self.seconds is None else round(self.seconds, 2),
        }


def plan_switch(old: ServedModel, new: ServedModel, device: str, memory: Memory | None) -> tuple[bool, str]:
    """Whether both fit side by side for a while, and why. ``memory`` is what the old one's process said last.

    Reads what is free: not on the loop.
    """
    setting = new.config.switch_overlap
    if setting != "auto":
        return setting == "always", f"switch_overlap is {setting}"
    need_bytes, free_bytes = process_bytes(new.loaded_bytes(device), device), _free_bytes(kind_of(device), memory)
    if free_bytes is None:
        return False, f"how much memory of {device} is free is not known yet"
    need, free = f"{need_bytes / 1e9:.1f} GB", f"{free_bytes / 1e9:.1f} GB"
    return need_bytes <= free_bytes, f"{new.id} needs about {need} beside {old.id}, {free} of {device} are free"


def process_bytes(weight_bytes: float, device: str) -> float:
    """What a process with so much weights takes of a device of this name, at most."""
    return weight_bytes * _WEIGHTS_MARGIN + _WORK_BYTES[kind_of(device)]


def kind_of(device: str) -> str:
    """``cuda`` of ``cuda:1``."""
    return device.partition(":")[0]


def free_host_bytes() -> int:
    """What the host's memory has left."""
    return int(psutil.virtual_memory().available)


def _free_bytes(kind: str, memory: Memory | None) -> int | None:
    if kind == "cpu":
        return free_host_bytes()
    return None if memory is None else memory.total_bytes - memory.used_bytes
