"""How long a device takes for the parts of a job: measured, from benchmarks/results, or given."""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT

RESULTS = ROOT / "benchmarks" / "results"

_LEAST_GAIN = 1.05
"""As in engine/batch_size.py: rows share a step only if each then takes 5 % less than in a step of half as many."""
_PIXELS_OF_TOKEN = 16
_MEASURED_SIZE = 1024
"""At which text, decoding and encoding were measured; other sizes are assumed to take as long for a pixel."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What jobs ask for: a square picture of ``size`` pixels a side, made in so many steps."""

    size: int = 1024
    steps: int = 28


@dataclass(frozen=True, slots=True)
class ServiceTimes:
    """Seconds of one device. ``step_s`` maps sizes to the time of a step of so many rows; ``answer_s`` is HTTP alone.

    A ``is_synchronous`` device, such as a CPU, has its next step done before it looks at what was decoded before it.
    """

    name: str
    step_s: Mapping[int, Mapping[int, float]]
    text_s: float = 0.0
    decode_s: float = 0.0
    encode_s: float = 0.0
    answer_s: float = 0.0
    batch_tokens: int = 0
    text_tokens: int = 0
    is_synchronous: bool = False
    sources: Mapping[str, Any] = field(default_factory=dict)

    def seconds_of_step(self, size: int, rows: int) -> float:
        """Between measured numbers of rows a line; beyond the last one as long for each row as there."""
        known = self.step_s[size]
        if rows in known:
            return known[rows]
        counts = sorted(known)
        place = bisect.bisect(counts, rows)
        if place == len(counts):
            return known[counts[-1]] * rows / counts[-1]
        low, high = counts[place - 1], counts[place]
        return known[low] + (known[high] - known[low]) * (rows - low) / (high - low)

    def rows_limit(self, size: int) -> int:
        """How many rows of this size may share a step."""
        return max(self.batch_tokens // self.tokens(size), 1) if self.batch_tokens else 1

    def without_batching(self) -> ServiceTimes:
        """The same device, where each job has it for itself."""
        return replace(self, batch_tokens=0)

    def tokens(self, size: int) -> int:
        """Of one row of a transformer call."""
        return (size // _PIXELS_OF_TOKEN) ** 2 + self.text_tokens

    def of_pixels(self, seconds: float, size: int) -> float:
        """What was measured at ``_MEASURED_SIZE``, at another size."""
        return seconds * (size / _MEASURED_SIZE) ** 2 if self.sources else seconds

    def job_s(self, kind: Kind) -> float:
        """The device's time for a job that has it for itself."""
        decode_s = self.of_pixels(self.decode_s, kind.size)
        return self.text_s + kind.steps * self.seconds_of_step(kind.size, 1) + decode_s


def batch_tokens(step_s: Mapping[int, float], tokens: int) -> int:
    """What the engine's warm-up would find, had it measured these steps: tokens of the largest step that gains."""
    best_rows, best_s = 1, float("inf")
    for rows in sorted(step_s):
        row_s = step_s[rows] / rows
        if row_s * _LEAST_GAIN > best_s:
            break
        best_rows, best_s = rows, row_s
    return best_rows * tokens


def measured(precision: str, folder: Path = RESULTS) -> ServiceTimes:
    """Of the card of ``denoise.json``, for ``bf16`` or ``fp8``. Raises ``OSError``."""
    denoise = json.loads((folder / "denoise.json").read_text())
    found = {path: json.loads(path.read_text()) for path in folder.glob(f"serving-*-{precision}.json")}
    card = denoise["cards"][0]["name"]
    ((serving_file, serving),) = ((path, each) for path, each in found.items() if each["cards"][0]["name"] == card)
    steps: dict[int, dict[int, float]] = {}
    for figure in denoise["steps"]:
        if figure["what"] == f"Safelight {precision}":
            steps.setdefault(figure["size"], {})[figure["rows"]] = figure["step_ms"] / 1000
    (overhead,) = serving["overhead"]
    stages = {name: float(value["median"]) for name, value in overhead["seconds"].items()}
    (vae,) = [figure for figure in denoise["vae"] if figure["size"] == _MEASURED_SIZE]
    smallest, text_tokens = min(steps), int(denoise["text_tokens"])
    return ServiceTimes(
        f"{denoise['model']} {precision}",
        steps,
        text_s=stages["stage text"],
        decode_s=vae["safelight_ms"] / 1000,
        encode_s=stages["predict"] - stages["engine"],
        answer_s=overhead["http_ms"] / 1000,
        batch_tokens=batch_tokens(steps[smallest], (smallest // _PIXELS_OF_TOKEN) ** 2 + text_tokens),
        text_tokens=text_tokens,
        sources={
            "card": card,
            "files": ["denoise.json", serving_file.name],
            "dates": [denoise["date"], serving["date"]],
            "measured_size": _MEASURED_SIZE,
        },
    )
