"""The figures of ``bench_serving`` as lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Figures = Mapping[str, Any]


def rate_line(figures: Figures) -> str:
    """Throughput and latency at one rate."""
    late = figures["client"]["late_s"] or {"p99": 0.0, "max": 0.0}
    return (
        f"rate {figures['rate']:g}/s for {figures['seconds']:g} s: offered {figures['offered_per_s']:.2f}/s, "
        f"{figures['images_per_s']:.2f} images/s\n"
        f"  latency {_spread(figures['latency_s'])}\n"
        f"  first preview {_spread(figures['first_preview_s'])}, of {figures['previews']} streams\n"
        f"  {_outcomes(figures)}; this client sent late by p99 {1000 * late['p99']:.1f}, "
        f"max {1000 * late['max']:.1f} ms and took {figures['client']['cpu_share']:.0%} of a core"
    )


def burst_line(figures: Figures) -> str:
    """One burst, and the same pictures by the reference, if there is one."""
    line = (
        f"{_burst(figures)}: {figures['seconds']:.2f} s, {figures['images_per_s']:.2f} images/s; {_outcomes(figures)}"
    )
    if reference := figures["reference"]:
        line += (
            f"\n  one after another with FluxPipeline: {reference['seconds']:.2f} s, "
            f"{reference['images_per_s']:.2f} images/s"
        )
    return line


def comparison_line(figures: Figures) -> str:
    """Medians of the repeats of one burst."""
    line = f"{_burst(figures)}, median of {figures['repeats']}: {figures['images_per_s']:.2f} images/s"
    if figures["ratio"] is None:
        return line
    return f"{line}, {figures['ratio']:.2f} times FluxPipeline one after another"


def overhead_line(figures: Figures) -> str:
    """What one request costs beyond the engine."""
    seconds = figures["seconds"]
    parts = ", ".join(f"{name} {1000 * pair['median']:.1f}" for name, pair in seconds.items())
    return (
        f"{figures['size']}, one at a time, {figures['images']} images: overhead {figures['overhead_ms']:.1f} ms "
        f"(HTTP alone {figures['http_ms']:.1f})\n  medians in ms: {parts}"
    )


def _burst(figures: Figures) -> str:
    return f"{figures['count']} at once of {figures['size']}"


def _spread(seconds: Mapping[str, float] | None) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in seconds.items()) + " s" if seconds else "-"


def _outcomes(figures: Figures) -> str:
    shared = figures["batch_jobs_mean"]
    kinds = "".join(f", {count} {kind}" for kind, count in figures["failures"].items())
    jobs = "" if shared is None else f"; {shared:.2f} jobs a step"
    return f"refused {figures['refused']}, failed {figures['failed']}{kinds}{jobs}"
