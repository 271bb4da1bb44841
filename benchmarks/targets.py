"""The numbers that Safelight promises on two cores without a GPU, checked against the worst of all repeats.

The time of an image and the overhead are medians over the images of one run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from benchmarks.overhead import Overhead
from benchmarks.servers import ServerRun

FIRST_200_S = 0.7
P99_MS = 10.0
MAX_MS = 100.0
READY_S = 20.0
IMAGE_S = 2.0
OVERHEAD_MS = 30.0


@dataclass(frozen=True, slots=True)
class Check:
    """One promise and what was measured, in the same unit."""

    name: str
    measured: float
    limit: float
    unit: str
    passed: bool

    def line(self) -> str:
        verdict = "PASS" if self.passed else "FAIL"
        return f"{verdict}  {self.name}: {self.measured:.4g} {self.unit} (at most {self.limit:g} {self.unit})"

    def as_json(self) -> dict[str, object]:
        return asdict(self) | {"measured": round(self.measured, 3)}


def check_targets(runs: Sequence[ServerRun], overhead: Overhead | None) -> list[Check]:
    """All checks of Safelight's own row; without ``overhead`` those that need it are left out."""
    checks = [
        _at_most("first 200 of /livez after process start", max(run.first_200_s for run in runs), FIRST_200_S, "s"),
        *_phase_checks(runs),
        _at_most("ready after process start", max(run.ready_s for run in runs), READY_S, "s"),
    ]
    if overhead is not None:
        checks += [
            _at_most(f"one {overhead.size} image over HTTP, median", overhead.http_median_s, IMAGE_S, "s"),
            _at_most("HTTP over the bare pipeline call, medians", overhead.overhead_ms, OVERHEAD_MS, "ms"),
        ]
    return checks


def _phase_checks(runs: Sequence[ServerRun]) -> Iterator[Check]:
    for phase in runs[0].phases:
        figures = [run.phases[phase] for run in runs]
        for name, values, limit in (
            ("p99", [figure.p99_ms for figure in figures], P99_MS),
            ("max", [figure.max_ms for figure in figures], MAX_MS),
        ):
            # A phase without an answer has no latency; its whole length stands for it.
            known = [
                1000 * figure.seconds if value is None else value for value, figure in zip(values, figures, strict=True)
            ]
            yield _at_most(f"/livez {name} during {phase}", max(known), limit, "ms")


def _at_most(name: str, measured: float, limit: float, unit: str) -> Check:
    return Check(name, measured, limit, unit, measured <= limit)
