"""The measured runs as a table for people and as JSON for the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from benchmarks.latency import PhaseFigures, median_and_worst
from benchmarks.overhead import Overhead
from benchmarks.servers import PHASES, ServerRun
from benchmarks.workload import Workload

Runs = Mapping[str, Sequence[ServerRun]]

_NOTES = "   {:<34}{:>7}"
_FIGURES = ("p50_ms", "p99_ms", "max_ms")


def as_table(runs: Runs, overhead: Overhead | None) -> str:
    """Median (worst) over the repeats: one line per phase and server, then one per server, then the overhead."""
    lines = [_row("phase", "server", "samples", *(name.replace("_", " ") for name in _FIGURES))]
    for phase in PHASES:
        for kind, repeats in runs.items():
            lines.append(_row(phase, kind, *_phase_cells([run.phases[phase] for run in repeats])))
        lines.append("")
    lines.append(_row("", "server", "", "first 200 s", "ready s", "image s") + _NOTES.format("probe", "others"))
    for kind, repeats in runs.items():
        lines.append(_row("", kind, "", *_life_cells(repeats)) + _notes(repeats))
    if overhead is not None:
        lines.append(
            f"\n{overhead.size}, {overhead.num_inference_steps} steps, medians of {len(overhead.http_s)}: "
            f"HTTP {overhead.http_median_s:.3f} s, bare pipeline {overhead.bare_median_s:.3f} s, "
            f"overhead {overhead.overhead_ms:.1f} ms"
        )
    return "\n".join(lines)


def _row(first: str, second: str, third: str, *figures: str) -> str:
    return f"{first:<10}{second:<11}{third:>8}" + "".join(f"{figure:>18}" for figure in figures)


def _phase_cells(figures: Sequence[PhaseFigures]) -> list[str]:
    samples = str(sum(figure.samples for figure in figures))
    if any(figure.is_silent for figure in figures):
        return [samples, f"      no answer for {_pair([figure.seconds for figure in figures])} s"]
    return [samples, *(_pair(values) for values in _columns(figures).values())]


def _columns(figures: Sequence[PhaseFigures]) -> dict[str, list[float]]:
    return {name: [value for figure in figures if (value := getattr(figure, name)) is not None] for name in _FIGURES}


def _life_cells(repeats: Sequence[ServerRun]) -> list[str]:
    images = [seconds for run in repeats for seconds in run.image_s]
    return [
        _pair(values) for values in ([run.first_200_s for run in repeats], [run.ready_s for run in repeats], images)
    ]


def _notes(repeats: Sequence[ServerRun]) -> str:
    """What could spoil the figures: the cores that the probe and strangers took, and how late the probe woke."""
    costs = [run.hammer for run in repeats]
    late = max(cost.late_p99_ms for cost in costs), max(cost.late_max_ms for cost in costs)
    probe = f"{max(cost.cpu_share for cost in costs):.0%} of a core, late {late[0]:.1f}, {late[1]:.1f} ms"
    return _NOTES.format(probe, f"{max(run.others_share for run in repeats):.0%}")


def _pair(values: Sequence[float]) -> str:
    pair = median_and_worst(values)
    median, worst = _short(pair["median"]), _short(pair["worst"])
    return median if len(values) == 1 else f"{median} ({worst})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def as_json(workload: Workload, runs: Runs, overhead: Overhead | None) -> dict[str, object]:
    """Every figure as median and worst over the repeats; phases without an answer as the length of the silence."""
    return {
        "workload": {
            "model": workload.model,
            "size": workload.size,
            "num_inference_steps": workload.num_inference_steps,
            "images": len(next(iter(runs.values()))[0].image_s),
            "device": "cpu",
            "dtype": "float32",
        },
        "repeats": len(next(iter(runs.values()))),
        "servers": {kind: _server_json(repeats) for kind, repeats in runs.items()},
        "overhead": overhead and _overhead_json(overhead),
    }


def _server_json(repeats: Sequence[ServerRun]) -> dict[str, object]:
    return {
        "first_200_s": median_and_worst([run.first_200_s for run in repeats]),
        "ready_s": median_and_worst([run.ready_s for run in repeats]),
        "image_s": median_and_worst([seconds for run in repeats for seconds in run.image_s]),
        "phases": {phase: _phase_json([run.phases[phase] for run in repeats]) for phase in PHASES},
        "others_share": median_and_worst([run.others_share for run in repeats]),
        "probe": [{name: round(value, 4) for name, value in asdict(run.hammer).items()} for run in repeats],
    }


def _phase_json(figures: Sequence[PhaseFigures]) -> dict[str, object]:
    seconds = median_and_worst([figure.seconds for figure in figures])
    counts = {name: sum(getattr(figure, name) for figure in figures) for name in ("samples", "answers")}
    if any(figure.is_silent for figure in figures):
        return {"seconds": seconds, **counts, "no_answer_s": seconds}
    return {
        "seconds": seconds,
        **counts,
        **{name: median_and_worst(found) for name, found in _columns(figures).items()},
    }


def _overhead_json(overhead: Overhead) -> dict[str, object]:
    return {
        "size": overhead.size,
        "num_inference_steps": overhead.num_inference_steps,
        "threads": overhead.threads,
        "http_median_s": round(overhead.http_median_s, 4),
        "bare_median_s": round(overhead.bare_median_s, 4),
        "overhead_ms": round(overhead.overhead_ms, 1),
        "others_share": round(overhead.others_share, 3),
        "http_s": [round(value, 4) for value in overhead.http_s],
        "bare_s": [round(value, 4) for value in overhead.bare_s],
    }
