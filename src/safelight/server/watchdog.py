"""Tells a worker that is slow from one that hangs, by how long its denoising steps usually take."""

from __future__ import annotations

import statistics
import time
from collections import deque

from safelight.params import GenerationParams

_SLOWER = 10.0
_EDGES_SLOWER = 3.0
_REMEMBERED_STEPS = 64


class Watchdog:
    """One per worker. A job is overdue after ``least_s`` without a sign of life, or ten usual steps if that is more.

    Before the first step and after the last one more is allowed: encoding text, decoding latents and first uses of a
    size take longer than a step. The warm-up did all of that once, so three times its time is the measure.
    """

    def __init__(self, least_s: float) -> None:
        self._least_s = least_s
        self._warmup_s = 0.0
        self._step_s_per_megapixel: deque[float] = deque(maxlen=_REMEMBERED_STEPS)
        self._megapixels = 1.0
        self._total_steps = 0
        self._step = 0
        self._seen_s = 0.0

    def warmed_up(self, seconds: float) -> None:
        """The worker became ready after a warm-up that took so long."""
        self._warmup_s = seconds

    def begin(self, params: GenerationParams) -> None:
        """A job begins."""
        self._megapixels = params.megapixels
        self._total_steps = params.total_steps
        self._step = 0
        self._seen_s = time.monotonic()

    def step_done(self, step: int) -> None:
        """A sign of life: this many steps are done."""
        now_s = time.monotonic()
        if self._step:  # the time of the first step is not that of a step
            self._step_s_per_megapixel.append((now_s - self._seen_s) / self._megapixels)
        self._step, self._seen_s = step, now_s

    @property
    def limit_s(self) -> float:
        """How long the job may now be silent."""
        usual_s = statistics.median(self._step_s_per_megapixel or (0.0,)) * self._megapixels
        limit_s = max(self._least_s, _SLOWER * usual_s)
        if self._step in (0, self._total_steps):
            limit_s = max(limit_s, _EDGES_SLOWER * self._warmup_s * max(self._megapixels, 1.0))
        return limit_s

    @property
    def left_s(self) -> float:
        """Seconds until the job is overdue; negative once it is."""
        return self._seen_s + self.limit_s - time.monotonic()
