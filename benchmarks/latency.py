"""From ticks to figures: percentiles of a phase, and the median and the worst of several repeats."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.hammer import Recording


@dataclass(frozen=True, slots=True)
class PhaseFigures:
    """Latency in one phase, in milliseconds from the time at which a request was due to its whole answer.

    ``answers`` counts answers that arrived within the phase. With none, or none due yet, there is no percentile to
    give: the server was silent for ``seconds``.
    """

    seconds: float
    samples: int
    answers: int
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None

    @property
    def is_silent(self) -> bool:
        return self.answers == 0 or self.p50_ms is None


@dataclass(frozen=True, slots=True)
class HammerCost:
    """What the probe took: its share of one core, and how late it woke to send (not the server's fault)."""

    cpu_share: float
    late_p99_ms: float
    late_max_ms: float
    refused: int
    lost: int


def phase_figures(recording: Recording, start_s: float, end_s: float) -> PhaseFigures:
    """Of the ticks that were due between two times, in seconds since the epoch."""
    ticks = zip(recording.due_s, recording.answered_s, strict=True)
    latencies = sorted(1000 * (answered - due) for due, answered in ticks if start_s <= due < end_s)
    answers = len({answered for answered in recording.answered_s if start_s <= answered < end_s})
    if not latencies:
        return PhaseFigures(end_s - start_s, 0, answers, None, None, None)
    p50, p99 = percentile(latencies, 50), percentile(latencies, 99)
    return PhaseFigures(end_s - start_s, len(latencies), answers, p50, p99, latencies[-1])


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest rank: a value that was measured, never one in between."""
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]


def hammer_cost(recording: Recording) -> HammerCost:
    """Of a whole recording."""
    late_ms = sorted(1000 * value for value in recording.late_s) or [0.0]
    share = recording.cpu_s / recording.wall_s
    return HammerCost(share, percentile(late_ms, 99), late_ms[-1], recording.refused, recording.lost)


def median_and_worst(values: Sequence[float]) -> dict[str, float]:
    """Over repeats; the worst is the largest, since all our figures are times."""
    return {"median": round(statistics.median(values), 3), "worst": round(max(values), 3)}
