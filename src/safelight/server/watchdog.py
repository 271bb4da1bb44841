"""Tells a worker that is slow from one that hangs, by how long its denoising steps usually take."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections import deque
from dataclasses import dataclass

from safelight.params import GenerationParams

_SLOWER = 10.0
_EDGES_SLOWER = 3.0
_REMEMBERED_STEPS = 64
_LOOK_S = 0.05


@dataclass(slots=True)
class _Watched:
    params: GenerationParams
    seen_s: float
    step: int = 0
    longest_s: float = 0.0

    @property
    def is_at_edge(self) -> bool:
        return self.step in (0, self.params.total_steps)

    def step_done(self, step: int, now_s: float) -> float | None:
        """Seconds of a step of all its images, once the last of them made it.

        Images that share a step report it in one go, others one after the other: the longest silence is right for both.
        """
        self.longest_s = max(self.longest_s, now_s - self.seen_s)
        self.step, self.seen_s = step, now_s
        images = self.params.num_images
        if step % images:
            return None
        longest_s, self.longest_s = self.longest_s, 0.0
        return longest_s if step > images else None  # the time of the first step is not that of a step


class Watchdog:
    """One per worker. It is overdue ``least_s`` after the last sign of life, or ten usual steps if that is more.

    What any of its jobs reports is a sign of life. More is allowed while one of them is before its first step or after
    its last one, and after one has left: encoding text, decoding latents and first uses of a size take longer than a
    step. The warm-up did all of that once, so three times its time is the measure.
    """

    def __init__(self, least_s: float) -> None:
        self._least_s = least_s
        self._warmup_s = 0.0
        self._step_s_per_megapixel: deque[float] = deque(maxlen=_REMEMBERED_STEPS)
        self._jobs: dict[str, _Watched] = {}
        self._has_one_left = False
        self._seen_s = 0.0

    def warmed_up(self, seconds: float) -> None:
        """The worker became ready after a warm-up that took so long."""
        self._warmup_s = seconds

    def begin(self, job_id: str, params: GenerationParams) -> None:
        """A job begins. While others are between two steps, that is no sign of life."""
        now_s = time.monotonic()
        if all(job.is_at_edge for job in self._jobs.values()):
            self._seen_s = now_s
        self._jobs[job_id] = _Watched(params, now_s)

    def step_done(self, job_id: str, step: int) -> None:
        """A sign of life: this many steps of the job are done."""
        self._seen_s = time.monotonic()
        self._has_one_left = False
        job = self._jobs[job_id]
        if (seconds := job.step_done(step, self._seen_s)) is not None:
            self._step_s_per_megapixel.append(seconds / job.params.megapixels)

    def end(self, job_id: str) -> None:
        """The job is over, which is a sign of life: if the worker is gone, nobody asks."""
        self._seen_s = time.monotonic()
        self._has_one_left = True
        del self._jobs[job_id]

    async def wait(self) -> None:
        """Returns once the worker is overdue. No job can be so sooner than the least time after it began."""
        while True:
            left_s = self.left_s
            if left_s <= 0:
                return
            await asyncio.sleep(max(min(left_s, self._least_s), _LOOK_S))

    @property
    def limit_s(self) -> float:
        """How long the worker may now be silent."""
        megapixels = max((job.params.megapixels for job in self._jobs.values()), default=1.0)
        usual_s = statistics.median(self._step_s_per_megapixel or (0.0,)) * megapixels
        limit_s = max(self._least_s, _SLOWER * usual_s)
        if self._has_one_left or any(job.is_at_edge for job in self._jobs.values()):
            limit_s = max(limit_s, _EDGES_SLOWER * self._warmup_s * max(megapixels, 1.0))
        return limit_s

    @property
    def left_s(self) -> float:
        """Seconds until the worker is overdue, negative once it is; infinite while it has no job."""
        return self._seen_s + self.limit_s - time.monotonic() if self._jobs else math.inf
