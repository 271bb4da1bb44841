"""Load progress as data: which phase, which component, how many bytes have really moved."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from safelight.errors import JobCancelled
from safelight.protocol import LoadProgress

OnLoadProgress = Callable[[LoadProgress], None]

_MIN_INTERVAL_S = 0.1


class LoadReport:
    """Counts components and bytes of one load and tells ``on_progress``, at most ten times a second within a component.

    Of several components under way it names the one that began or ended just now, else the one that began first. Every
    report is also the point where a cancelled load stops (``JobCancelled``); all of them come from one thread.
    """

    def __init__(
        self, components_total: int, bytes_total: int, on_progress: OnLoadProgress, cancelled: threading.Event
    ) -> None:
        self.phase_seconds: dict[str, float] = {}
        self._components_done = 0
        self._components_total = components_total
        self._bytes_done: dict[str, int] = {}
        self._bytes_left: dict[str, int] = {}
        self._bytes_total = bytes_total
        self._on_progress = on_progress
        self._cancelled = cancelled
        self._phase = ""
        self._component: str | None = None
        self._last_report_s = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a phase; phases of one name add up."""
        self._phase = name
        self._tell()
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - start
            self.phase_seconds[name] = self.phase_seconds.get(name, 0.0) + seconds

    @contextmanager
    def component(self, name: str, weight_bytes: int) -> Iterator[None]:
        """Begins and ends one component."""
        self.begin(name, weight_bytes)
        yield
        self.end(name)

    def begin(self, name: str, weight_bytes: int) -> None:
        """A component is under way; several may be at once."""
        self._bytes_left[name] = weight_bytes
        self._bytes_done[name] = 0
        self._component = name

    def looking_at(self, name: str | None) -> None:
        """What the phase has come to, where no bytes move."""
        self._component = name
        if time.monotonic() - self._last_report_s >= _MIN_INTERVAL_S:
            self._tell()

    def moved(self, name: str, moved_bytes: int) -> None:
        """Adds bytes that now lie on the device, at most as many as the component was announced with."""
        moved_bytes = min(moved_bytes, self._bytes_left[name])
        self._bytes_left[name] -= moved_bytes
        self._bytes_done[name] += moved_bytes
        self._component = next(iter(self._bytes_left))
        if time.monotonic() - self._last_report_s >= _MIN_INTERVAL_S:
            self._tell()

    def end(self, name: str) -> None:
        """Counts a component as done, and all of its bytes with it."""
        self._bytes_done[name] += self._bytes_left.pop(name)
        self._components_done += 1
        self._component = name
        self._tell()
        self._component = next(iter(self._bytes_left), None)

    def _tell(self) -> None:
        if self._cancelled.is_set():
            raise JobCancelled("loading was cancelled")
        self._last_report_s = time.monotonic()
        self._on_progress(
            LoadProgress(
                self._phase,
                self._component,
                self._components_done,
                self._components_total,
                sum(self._bytes_done.values()),
                self._bytes_total,
                dict(self._bytes_done),
            )
        )
