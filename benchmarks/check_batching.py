"""How much a picture that is made in a batch differs from the same one made alone: by step, and in the end.

``python -m benchmarks.check_batching`` prints a table and writes ``benchmarks/results/batching_error.json``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.processes import ROOT
from benchmarks.record import Record
from safelight.checkpoint import Checkpoint, open_checkpoint
from safelight.config import EMBEDDED_MODEL
from safelight.engine import pipelines
from safelight.engine.load_report import LoadReport
from safelight.params import GenerationParams
from safelight.setting_values import parse_size

if TYPE_CHECKING:
    import torch

    from safelight.engine.flux.drawing import Drawing
    from safelight.engine.flux.model import FluxModel

_OUTPUT = ROOT / "benchmarks" / "results" / "batching_error.json"


def main() -> None:
    """Measures each size and batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="the embedded model, or a checkpoint directory")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="of the weights: float32 or bfloat16")
    parser.add_argument("--float8", action="store_true", help="products of the blocks in eight bits")
    parser.add_argument("--sizes", default="256x256", help="in pixels, separated by commas")
    parser.add_argument("--batches", default="2,4,8", help="pictures together, separated by commas")
    parser.add_argument("--steps", type=int, help="denoising steps, instead of the model's")
    parser.add_argument("--output", type=Path, default=_OUTPUT)
    args = parser.parse_args()
    record = Record(args.output, shlex.join(["python", "-m", "benchmarks.check_batching", *sys.argv[1:]]))
    checkpoint = open_checkpoint(args.model)
    model = _load(checkpoint, args)
    record.put(model=checkpoint.card.id, dtype=args.dtype, float8=args.float8)
    for size in args.sizes.split(","):
        for count in map(int, args.batches.split(",")):
            figures = _compare(model, [_params(checkpoint, size, args.steps, seed) for seed in range(count)])
            record.append("batches", {"size": size, "count": count, **figures})
            print(
                f"{size} x {count}: relative difference of latents {figures['first_step']:.1e} after one step, "
                f"{figures['last_step']:.1e} in the end; of pixels at most {figures['pixels_max']}/255, "
                f"{figures['pixels_mean']:.3f}/255 on average",
                flush=True,
            )


def _load(checkpoint: Checkpoint, args: argparse.Namespace) -> FluxModel:
    report = LoadReport(len(checkpoint.components), checkpoint.weight_bytes, lambda _: None, threading.Event())
    pipelines.import_libraries()
    pipeline = pipelines.build_pipeline(checkpoint, args.device, args.dtype, report)
    from safelight.engine.flux.model import FluxModel

    return FluxModel(pipeline, float8=args.float8)


def _params(checkpoint: Checkpoint, size: str, steps: int | None, seed: int) -> GenerationParams:
    card, (width, height) = checkpoint.card, parse_size(size)
    return GenerationParams(
        prompt=card.examples[seed % len(card.examples)] if card.examples else f"picture number {seed}",
        width=width,
        height=height,
        num_inference_steps=steps or card.default_num_inference_steps,
        guidance_scale=card.default_guidance_scale,
        max_sequence_length=card.max_sequence_length,
        seed=seed,
    )


def _compare(model: FluxModel, asked: Sequence[GenerationParams]) -> dict[str, Any]:
    """The worst of all pictures: the difference's norm over the latents' own; of pixels the largest and the mean."""
    alone = [_draw(model, [params]) for params in asked]
    together = _draw(model, asked)
    by_step = [
        max(_relative(own[step][0], latents) for (own, _), latents in zip(alone, row, strict=True))
        for step, row in enumerate(together[0])
    ]
    pixels = [np.abs(own[0].astype(int) - found) for (_, own), found in zip(alone, together[1], strict=True)]
    return {
        "first_step": by_step[0],
        "last_step": by_step[-1],
        "by_step": by_step,
        "pixels_max": int(max(found.max() for found in pixels)),
        "pixels_mean": float(max(found.mean() for found in pixels)),
    }


def _draw(
    model: FluxModel, asked: Sequence[GenerationParams]
) -> tuple[list[list[torch.Tensor]], list[np.ndarray[Any, Any]]]:
    """The latents of all after each step, and the finished pictures."""
    drawings: list[Drawing] = [drawing for params in asked for drawing in model.begin(params, None)]
    latents = []
    while not drawings[0].is_complete:
        model.step(drawings)
        model.mark()()
        latents.append([drawing.latents.float().cpu() for drawing in drawings])
    shots = [model.decode(drawing) for drawing in drawings]
    model.mark()()
    return latents, [np.asarray(shot.picture()) for shot in shots]


def _relative(expected: torch.Tensor, found: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


if __name__ == "__main__":
    main()
