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
    """A load that is over: when (Unix time), after how many seconds, and why it came to nothing, if so.

    ``lost`` says why the process that it made ready is no more, if so.
    """

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
        self.past: deque[PastLoad] = deque(maxlen=_KEPT_LOADS)

    def note(self, seconds: float, error: str | None = None) -> None:
        """A load is over, after so many seconds; ``error`` says why it came to nothing."""
        self.past.append(PastLoad(time.time(), seconds, error))

    def lost(self, reason: str) -> None:
        """The process of the last load, which was ready, has ended."""
        self.past[-1] = replace(self.past[-1], lost=reason)

    def seconds(self, model: str, device: str) -> float | None:
        """Seconds from start to ready of the last load, ``None`` if there was none. Reads a file: not on the loop."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, float]).get(f"{model} on {device}")
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    def record(self, model: str, device: str, seconds: float) -> None:
        """Writes a file: not on the loop. A full or read-only disk costs the next ETA, nothing else."""
        try:
            known = msgspec.json.decode(self._path.read_bytes(), type=dict[str, float])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            known = {}
        known[f"{model} on {device}"] = round(seconds, 3)
        temporary = self._path.with_suffix(f".{id(self)}.tmp")
        try:
            temporary.write_bytes(msgspec.json.encode(known))
            temporary.replace(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
