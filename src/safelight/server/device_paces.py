"""Which devices are slower than others, learnt from jobs that had theirs alone."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

CLEARLY = 1.25
"""By how much one time must be longer than another to count as longer: what is measured varies."""

_REMEMBERED = 3
_SURE = 2
_FRESH_S = 600.0

Shape = tuple[int, ...]


@dataclass(slots=True)
class _Device:
    """Seconds per unit of work (megapixels x transformer calls), the last few measured."""

    paces: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    seen_s: float = 0.0

    @property
    def pace(self) -> float | None:
        """The middle one, since the first use of a shape is slow on the fastest device; ``None`` if unsure."""
        return statistics.median(self.paces) if len(self.paces) >= _SURE else None


class DevicePaces:
    """Compared are devices with the same model and the same shape of pictures only.

    Of a device that is not known, or was not measured for long, the best is assumed: so it is tried, and measured.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._devices: dict[tuple[str, Shape], dict[str, _Device]] = {}
        self._fastest: dict[tuple[str, Shape], tuple[str, float]] = {}
        self._slow: dict[tuple[str, Shape], set[str]] = {}

    def measured(self, model: str, device: str, shape: Shape, pace: float) -> None:
        """A job of that shape took so many seconds per unit of work, alone on the device."""
        key = (model, shape)
        found = self._devices.setdefault(key, {}).setdefault(device, _Device())
        found.paces.append(pace)
        found.seen_s = self._clock()
        if (sure := found.pace) is None:
            return
        fastest, best = self._fastest.get(key, (device, sure))
        if fastest == device:  # which may have become slower
            known = [(name, each.pace) for name, each in self._devices[key].items()]
            fastest, best = min(((name, each) for name, each in known if each is not None), key=lambda entry: entry[1])
        elif sure < best:
            fastest, best = device, sure
        self._fastest[key] = fastest, best
        slow = self._slow.setdefault(key, set())
        (slow.add if sure > CLEARLY * best else slow.discard)(device)

    def are_uneven(self, model: str, shape: Shape) -> bool:
        """Whether some device is clearly slower than another."""
        return bool(self._slow.get((model, shape)))

    def pace(self, model: str, device: str, shape: Shape) -> float | None:
        """Seconds per unit of work there; ``None`` before any device was measured."""
        key = (model, shape)
        found = self._devices.get(key, {}).get(device)
        if found is not None and found.pace is not None and self._clock() - found.seen_s <= _FRESH_S:
            return found.pace
        return self._fastest[key][1] if key in self._fastest else None
