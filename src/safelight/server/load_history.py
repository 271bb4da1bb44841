"""How loads went before. Seconds are kept in the data directory: what an ETA can honestly be made from."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

_KEPT_LOADS = 8


@dataclass(frozen=True, slots=True)
class PastLoad:
    """A load that is over: of which model, when (Unix time), after how many seconds, and why it failed, if so.

    ``lost`` says why the process that it made ready is no more, if so.
    """

    model: str
    ended_s: float
    seconds: float
    error: str | None
    lost: str | None = None


class LoadHistory:
    """Seconds of the last successful load per model and device. A damaged file is an empty history.

    ``past`` are this process's last loads that are over, the newest last.
    """

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "load-history.json"
        self._known: dict[str, float] = {}
        self.past: deque[PastLoad] = deque(maxlen=_KEPT_LOADS)

    def note(self, model: str, seconds: float, error: str | None = None) -> None:
        """A load is over, after so many seconds; ``error`` says why it came to nothing."""
        self.past.append(PastLoad(model, time.time(), seconds, error))

    def lost(self, model: str, reason: str) -> None:
        """The process of this model's last load, which was ready, has ended."""
        for index in reversed(range(len(self.past))):
            if self.past[index].model == model and self.past[index].error is None:
                self.past[index] = replace(self.past[index], lost=reason)
                return

    def read(self) -> None:
        """Takes over what earlier servers have noted. Reads a file: not on the loop."""
        self._known = self._on_disk() | self._known

    def seconds(self, model: str, device: str) -> float | None:
        """Seconds from start to ready of the last load, ``None`` if there was none."""
        return self._known.get(f"{model} on {device}")

    def record(self, model: str, device: str, seconds: float) -> None:
        """Writes a file: not on the loop. A full or read-only disk costs the next ETA, nothing else."""
        mine = {f"{model} on {device}": round(seconds, 3)}
        self._known = self._known | mine
        temporary = self._path.with_suffix(f".{id(self)}.tmp")
        try:
            temporary.write_bytes(msgspec.json.encode(self._on_disk() | mine))
            temporary.replace(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)

    def _on_disk(self) -> dict[str, float]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, float])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return {}
