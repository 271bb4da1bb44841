"""How fast jobs are done here, learnt from those that were."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from safelight.jobs import Job

_FIRST_GUESS_S = 2.0
_WEIGHT = 0.2
_WINDOW_S = 180.0


class Pace:
    """Moving averages: seconds per job, and seconds per unit of work (megapixels x transformer calls)."""

    def __init__(self) -> None:
        self.job_seconds = _FIRST_GUESS_S
        self._seconds_per_work: float | None = None

    def measured(self, work: float, seconds: float) -> None:
        """A job of that much work used its worker for so long."""
        self.job_seconds += _WEIGHT * (seconds - self.job_seconds)
        found = seconds / work
        if self._seconds_per_work is None:
            self._seconds_per_work = found
        self._seconds_per_work += _WEIGHT * (found - self._seconds_per_work)

    def seconds(self, work: float) -> float | None:
        """Seconds for that much work on one worker; ``None`` before the first measurement."""
        return None if self._seconds_per_work is None else work * self._seconds_per_work


class Paces:
    """One for each model, by its name."""

    def __init__(self) -> None:
        self._paces: dict[str, Pace] = {}

    def of(self, model: str) -> Pace:
        """Of a model that has made nothing yet, a first guess."""
        return self._paces.setdefault(model, Pace())


class StepPaces:
    """Seconds of a denoising step by how many workers make it together; of jobs alike in model, size and adapters."""

    def __init__(self) -> None:
        self._seconds_per_megapixel: dict[tuple[object, ...], float] = {}

    def measured(self, job: Job, workers: int, step_s: float) -> None:
        """A step of the job took so long."""
        key, found = self._key(job, workers), step_s / job.params.megapixels
        known = self._seconds_per_megapixel.get(key, found)
        self._seconds_per_megapixel[key] = known + _WEIGHT * (found - known)

    def seconds(self, job: Job, workers: int) -> float | None:
        """What a step of the job would take; ``None`` before the first measurement."""
        found = self._seconds_per_megapixel.get(self._key(job, workers))
        return None if found is None else found * job.params.megapixels

    @staticmethod
    def _key(job: Job, workers: int) -> tuple[object, ...]:
        """Sizes within a factor of 1.4 are alike."""
        params = job.params
        has_negative = params.true_cfg_scale > 1
        return job.request.model, round(2 * math.log2(params.megapixels)), bool(params.loras), has_negative, workers


class Throughput:
    """Pictures a minute, over the last three minutes or for as long as there was anything to count."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started_s = clock()
        self._made: deque[tuple[float, int]] = deque()

    def add(self, images: int) -> None:
        """So many pictures are finished now."""
        self._made.append((self._clock(), images))
        self._forget_old()

    @property
    def images_per_min(self) -> float:
        self._forget_old()
        window_s = min(_WINDOW_S, self._clock() - self._started_s)
        return sum(images for _, images in self._made) * 60 / window_s if self._made else 0.0

    def _forget_old(self) -> None:
        while self._made and self._made[0][0] < self._clock() - _WINDOW_S:
            self._made.popleft()
