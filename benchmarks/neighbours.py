"""How much of the machine went to processes that have nothing to do with a figure."""

from __future__ import annotations

import contextlib
import time

import psutil


class Neighbours:
    """Counts as ours: this process and all below it that still run when it is asked."""

    def __init__(self) -> None:
        self._last = _seconds()

    def share(self) -> float:
        """Of all cores, from 0 to 1, since the last call."""
        before, self._last = self._last, _seconds()
        wall_s, busy_s, own_s = (now - then for now, then in zip(self._last, before, strict=True))
        return round(max(busy_s - own_s, 0.0) / (wall_s * (psutil.cpu_count() or 1)), 3)


def _seconds() -> tuple[float, float, float]:
    """By the clock, of all cores, of our own processes."""
    total = psutil.cpu_times()
    own_s = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            own = process.cpu_times()
            own_s += own.user + own.system
    return time.monotonic(), total.user + total.nice + total.system, own_s
