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

    Every report is also the point where a cancelled load stops (``JobCancelled``).
    """

    def __init__(
        self, components_total: int, bytes_total: int, on_progress: OnLoadProgress, cancelled: threading.Event
    ) -> None:
        self.phase_seconds: dict[str, float] = {}
        self._components_done = 0
        self._components_total = components_total
        self._bytes_done = 0
        self._bytes_total = bytes_total
        self._on_progress = on_progress
        self._cancelled = cancelled
        self._phase = ""
        self._component: str | None = None
        self._last_report_s = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a phase; nested phases of one name add up."""
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
        """Counts one component as done at its end, and its bytes as exactly ``weight_bytes`` by then."""
        bytes_before = self._bytes_done
        self._component = name
        yield
        self._components_done += 1
        self._bytes_done = bytes_before + weight_bytes
        self._tell()
        self._component = None

    def moved(self, moved_bytes: int, component_limit: int) -> None:
        """Adds bytes that now lie on the device; ``component_limit`` keeps rounding from passing the plan."""
        self._bytes_done = min(self._bytes_done + moved_bytes, component_limit)
        if time.monotonic() - self._last_report_s >= _MIN_INTERVAL_S:
            self._tell()

    @property
    def bytes_done(self) -> int:
        return self._bytes_done

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
                self._bytes_done,
                self._bytes_total,
            )
        )
