"""How fast jobs are done here, learnt from those that were."""

from __future__ import annotations

_FIRST_GUESS_S = 2.0
_WEIGHT = 0.2


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
