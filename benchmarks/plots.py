"""Charts of the recorded results for the docs: ``python -m benchmarks.plots`` writes docs/images/perf-*.svg."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.capacity import REPLICAS
from benchmarks.charts import Bar, Line, Panel, bar_chart, line_chart
from benchmarks.processes import ROOT

Result = Mapping[str, Any]

_RESULTS = ROOT / "benchmarks" / "results"
_IMAGES = ROOT / "docs" / "images"
_OFFERED = "images/s that arrive"


def serving_chart(result: Result) -> str:
    """Throughput and latency by rate, of what ``bench_serving --rates`` recorded."""
    rates = sorted(result["rates"], key=lambda figures: float(figures["offered_per_s"]))
    offered = [figures["offered_per_s"] for figures in rates]
    kept_up = Line("all that arrive", [(0.0, 0.0), (offered[-1], offered[-1])], is_faint=True)
    done = Line("answered", [(figures["offered_per_s"], figures["images_per_s"]) for figures in rates])
    latency = [_latency_line(rates, "latency_s", rank, rank) for rank in ("p50", "p99")]
    preview = _latency_line(rates, "first_preview_s", "p50", "first preview p50")
    times = [line for line in (*latency, preview) if line.points]
    panels = [Panel("Throughput, images/s", _OFFERED, [done, kept_up])]
    if times:
        panels.append(Panel("Latency, s", _OFFERED, times))
    return line_chart("Throughput and latency by load", _served(result), panels)


def _latency_line(rates: list[Any], kind: str, rank: str, name: str) -> Line:
    return Line(name, [(figures["offered_per_s"], figures[kind][rank]) for figures in rates if figures[kind]])


def restart_chart(result: Result) -> str:
    """Medians of the seconds to the first picture, of what ``bench_restart`` recorded."""
    found = {kind: figures["first_image_s"]["median"] for kind, figures in result["summary"].items()}
    bars = [
        Bar(caches, found[f"Safelight, {caches}"], found.get(f"diffusers, {caches}"))
        for caches in ("cold caches", "warm caches")
        if f"Safelight, {caches}" in found
    ]
    note = f"{_model(result)}, {result['size']}, {result['num_inference_steps']} steps, {_machine(result)}"
    return bar_chart("From process start to the first picture", note, "s", bars, ("Safelight", "diffusers"))


def denoise_chart(result: Result) -> str:
    """Steps of one picture, of what ``bench_denoise`` recorded; where diffusers was compiled, beside that."""
    found = {(each["what"], each["size"]): float(each["step_ms"]) for each in result["steps"] if each["rows"] == 1}
    bars = [
        Bar(f"{size} px, {precision}", found[f"Safelight {precision}", size], compiled)
        for (what, size), compiled in found.items()
        if what == "diffusers compiled"
        for precision in ("bf16", "fp8")
    ]
    note = f"{result['model']}, {result['text_tokens']} text tokens, {_machine(result)}"
    return bar_chart("A denoising step of one picture", note, "ms", bars, ("Safelight", "diffusers compiled, bf16"))


def simulation_chart(result: Result) -> str:
    """Devices by rate, and what an assumed sequence parallel would buy, of what ``simulate`` found."""
    needed = [each for each in result["devices"] if each["devices"] is not None]
    tightest = {each["precision"]: min(_targets(needed, each["precision"])) for each in needed}
    lines = [
        Line(
            f"{precision}, p95 {p95_s:g} s",
            [(each["rate"], each["devices"]) for each in needed if _asked(each) == (precision, p95_s)],
        )
        for precision, p95_s in tightest.items()
    ]
    fewest = min(each["devices"] for each in result["sequence_parallel"])
    precision = result["sequence_parallel"][0]["precision"]
    some = [
        each
        for each in result["sequence_parallel"]
        if (each["precision"], each["devices"]) == (precision, fewest) and each["load"] < 1
    ]
    means = [
        Line(policy, [(each["load"], each["mean_s"]) for each in some if each["policy"] == policy], policy == REPLICAS)
        for policy in dict.fromkeys(each["policy"] for each in some)
    ]
    panels = [
        Panel("Cards needed", "requests/s", lines),
        Panel(f"Mean latency on {fewest} cards, {precision}, s", "load, share of all cards", means),
    ]
    cards = " and ".join(dict.fromkeys(each["card"] for each in result["service_times"].values()))
    size = result["devices"][0]["size"]
    return line_chart("Simulated, not measured", f"{size}x{size}, fed with steps measured on {cards}", panels)


def _targets(needed: list[Any], precision: str) -> list[float]:
    return [each["p95_target_s"] for each in needed if each["precision"] == precision]


def _asked(figures: Result) -> tuple[str, float]:
    return figures["precision"], figures["p95_target_s"]


def _served(result: Result) -> str:
    asked = [f"{each['width']}x{each['height']}, {each['num_inference_steps']} steps" for each in result["params"]]
    return f"{_model(result)}, {' and '.join(asked)}, {_machine(result)}"


def _model(result: Result) -> str:
    """A checkpoint directory by its name alone."""
    model = str(result["model"])
    return Path(model).name if model.startswith(("/", ".", "~")) else model


def _machine(result: Result) -> str:
    names = [card["name"] for card in result["cards"]]
    return " and ".join(names) if names else f"{result['machine']['cores']} cores of {result['machine']['cpu']}"


def charts(folder: Path) -> Iterator[tuple[str, str]]:
    """Name of the image and SVG document of each result in ``folder`` that has a chart."""
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        if path.stem.startswith("serving") and result.get("rates"):
            yield f"perf-{path.stem}.svg", serving_chart(result)
        elif path.stem.startswith("denoise") and result.get("steps"):
            yield f"perf-{path.stem}.svg", denoise_chart(result)
        elif path.stem.startswith("restart") and result.get("summary"):
            yield f"perf-{path.stem}.svg", restart_chart(result)
        elif path.stem == "simulation" and result.get("devices") and result.get("sequence_parallel"):
            yield f"perf-{path.stem}.svg", simulation_chart(result)


def main() -> None:
    """Writes one image for each result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--results", type=Path, default=_RESULTS, help="folder of the results")
    parser.add_argument("--images", type=Path, default=_IMAGES, help="folder of the images")
    args = parser.parse_args()
    args.images.mkdir(parents=True, exist_ok=True)
    for name, document in charts(args.results):
        (args.images / name).write_text(document)
        print(args.images / name)


if __name__ == "__main__":
    main()
