"""What the engine's ways to be faster cost the embedded model: how it follows prompts in eight bits, with a step cache.

``python -m benchmarks.check_engine`` prints a table and writes ``benchmarks/results/engine_quality.json``. It runs on
the CPU: the products of the blocks in eight bits, which gains no time there, and the rest in float32.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.check_shapes import PROPERTIES, held_out_scenes, shares_of
from benchmarks.processes import ROOT
from benchmarks.record import Record
from safelight.checkpoint import Checkpoint, open_checkpoint
from safelight.config import EMBEDDED_MODEL
from safelight.engine import pipelines
from safelight.engine.batch import Batch
from safelight.engine.drawing_job import DrawingJob
from safelight.engine.flux.model import FluxModel
from safelight.engine.load_report import LoadReport
from safelight.params import GenerationParams
from training.captions import caption
from training.checker import judge
from training.scenes import Scene

_OUTPUT = ROOT / "benchmarks" / "results" / "engine_quality.json"
_ROWS = 16


@dataclass(frozen=True, slots=True)
class Way:
    """How the engine is set."""

    name: str
    float8: bool = False
    step_cache: int = 1


_WAYS = (
    Way("float32"),
    Way("fp8", float8=True),
    Way("step cache 2", step_cache=2),
    Way("step cache 3", step_cache=3),
)


def main() -> None:
    """Measures each way with the same captions and seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="captions, half with one object, half with two")
    parser.add_argument("--output", type=Path, default=_OUTPUT)
    args = parser.parse_args()
    record = Record(args.output, shlex.join(["python", "-m", "benchmarks.check_engine", *sys.argv[1:]]))
    checkpoint, scenes = open_checkpoint(EMBEDDED_MODEL), held_out_scenes(args.count)
    for way in _WAYS:
        verdicts: dict[str, list[Any]] = {"single": [], "pair": []}
        for scene, image in _pictures(checkpoint, way, scenes):
            verdicts["pair" if scene.relation else "single"].append(judge(np.asarray(image), scene))
        rows = {kind: shares_of(found) for kind, found in verdicts.items()}
        record.append("ways", {"way": way.name, **rows})
        for kind, shares in rows.items():
            figures = "  ".join(f"{name} {shares[name]:6.1%}" for name in (*PROPERTIES, "everything"))
            print(f"{way.name:13} {kind:6} ({shares['count']})  {figures}", flush=True)


def _pictures(checkpoint: Checkpoint, way: Way, scenes: list[Scene]) -> Iterator[tuple[Scene, Image.Image]]:
    report = LoadReport(len(checkpoint.components), checkpoint.weight_bytes, lambda _: None, threading.Event())
    pipelines.import_libraries()
    pipeline = pipelines.build_pipeline(checkpoint, "cpu", "float32", report)
    model = FluxModel(pipeline, float8=way.float8, step_cache=way.step_cache)
    batch = Batch(model)
    jobs = [DrawingJob(_params(checkpoint, scene, seed)) for seed, scene in enumerate(scenes)]
    batch.max_tokens = _ROWS * model.tokens(jobs[0].params)
    for job in jobs:
        batch.join(job)
    for scene, job in zip(scenes, jobs, strict=True):
        while not job.is_over:
            batch.advance()
        yield scene, job.outcome.result().images[0]


def _params(checkpoint: Checkpoint, scene: Scene, seed: int) -> GenerationParams:
    card = checkpoint.card
    return GenerationParams(
        prompt=caption(scene),
        width=card.default_width,
        height=card.default_height,
        num_inference_steps=card.default_num_inference_steps,
        guidance_scale=card.default_guidance_scale,
        max_sequence_length=card.max_sequence_length,
        seed=seed,
    )


if __name__ == "__main__":
    main()
