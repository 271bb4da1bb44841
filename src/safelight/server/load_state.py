"""How far one worker's load is, and how long it will still take."""

from __future__ import annotations

import time

from safelight.protocol import Fit, LoadProgress, Memory, Warm


class LoadState:
    """One load, from the start of the process to ready, and what was learnt of the process since.

    ``expected_s`` is what the last such load took, if known.
    """

    def __init__(self, expected_s: float | None = None) -> None:
        self.progress = LoadProgress("starting", None, 0, 0, 0, 0)
        self.phase_seconds: dict[str, float] = {}
        self.batch_tokens = 0
        self.memory: Memory | None = None
        self.fit: Fit | None = None
        self.warm: dict[tuple[int, int], set[int]] = {}
        self._expected_s = expected_s
        self._started_s = time.monotonic()
        self._bytes_started_s: float | None = None
        self._ready_after_s: float | None = None

    def advance(self, progress: LoadProgress) -> None:
        """Takes over the worker's latest report."""
        if progress.bytes_done and self._bytes_started_s is None:
            self._bytes_started_s = time.monotonic()
        self.progress = progress

    def finish(self, phase_seconds: dict[str, float], batch_tokens: int = 0, fit: Fit | None = None) -> None:
        """The worker is ready, for jobs of so many tokens at once, with the model fitted into its memory like this."""
        self._ready_after_s = self.seconds
        self.phase_seconds = phase_seconds
        self.batch_tokens = batch_tokens
        self.fit = fit

    def warmed(self, warm: Warm) -> None:
        """So many rows of this size pay for no first use any more."""
        self.warm.setdefault((warm.width, warm.height), set()).add(warm.rows)

    @property
    def is_finished(self) -> bool:
        return self._ready_after_s is not None

    @property
    def seconds(self) -> float:
        """Seconds from the start of the process until ready, or until now."""
        return self._ready_after_s if self._ready_after_s is not None else time.monotonic() - self._started_s

    @property
    def eta_s(self) -> float | None:
        """Seconds until ready: from the last load of this model here, else from the rate of bytes, else unknown."""
        if self.is_finished:
            return None
        if self._expected_s is not None:
            return max(self._expected_s - self.seconds, 0.0)
        if self._bytes_started_s is None or not self.progress.bytes_done:
            return None
        left = self.progress.bytes_total - self.progress.bytes_done
        return left * (time.monotonic() - self._bytes_started_s) / self.progress.bytes_done
