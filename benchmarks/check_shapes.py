"""How well the embedded model follows its prompts: held-out captions, the real pipeline, a judge that reads pixels.

``python -m benchmarks.check_shapes [--count N]`` prints a table and writes ``benchmarks/results/shapes_quality.json``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

from safelight.checkpoint import Checkpoint, open_checkpoint
from training.captions import caption
from training.checker import Verdict, judge
from training.scenes import Scene, held_out_scene

PROPERTIES = ("background", "colour", "shape", "size", "position")
SEED = 7

_BATCH = 16


@dataclass(frozen=True, slots=True)
class Setting:
    """How the pictures are made."""

    steps: int
    guidance_scale: float


def held_out_scenes(count: int, seed: int = SEED) -> list[Scene]:
    """Half of them with one object, half with two; the same for the same seed."""
    source = random.Random(seed)
    return [held_out_scene(source, pair=index % 2 == 1) for index in range(count)]


def load_pipeline(checkpoint: Checkpoint) -> Any:
    """diffusers' own pipeline in float32, on CUDA if there is one."""
    pipeline = diffusers.FluxPipeline.from_pretrained(checkpoint.path, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def pictures(
    pipeline: Any, checkpoint: Checkpoint, scenes: list[Scene], setting: Setting
) -> Iterator[tuple[Scene, Image.Image]]:
    """Each scene with the picture that the model draws of its plain caption."""
    for start in range(0, len(scenes), _BATCH):
        batch = scenes[start : start + _BATCH]
        output = pipeline(
            [caption(scene) for scene in batch],
            width=checkpoint.card.default_width,
            height=checkpoint.card.default_height,
            num_inference_steps=setting.steps,
            guidance_scale=setting.guidance_scale,
            max_sequence_length=checkpoint.card.max_sequence_length,
            generator=[torch.Generator("cpu").manual_seed(start + index) for index in range(len(batch))],
        )
        yield from zip(batch, output.images, strict=True)


def measure(pipeline: Any, checkpoint: Checkpoint, scenes: list[Scene], setting: Setting) -> dict[str, Any]:
    """Shares of right properties, for one object and for two."""
    verdicts: dict[str, list[Verdict]] = {"single": [], "pair": []}
    start_s = time.monotonic()
    for scene, image in pictures(pipeline, checkpoint, scenes, setting):
        verdicts["pair" if scene.relation else "single"].append(judge(np.asarray(image), scene))
    seconds = (time.monotonic() - start_s) / len(scenes)
    rows = {kind: shares_of(found) for kind, found in verdicts.items() if found}
    return {"steps": setting.steps, "guidance_scale": setting.guidance_scale, "seconds_per_image": seconds, **rows}


def shares_of(verdicts: list[Verdict]) -> dict[str, float | int]:
    """For each property how many have it right, and how many have all of them right."""
    shares = {name: sum(getattr(verdict, name) for verdict in verdicts) / len(verdicts) for name in PROPERTIES}
    shares["everything"] = sum(verdict.is_right for verdict in verdicts) / len(verdicts)
    return {"count": len(verdicts)} | {name: round(value, 4) for name, value in shares.items()}


def main() -> None:
    """Measures the default setting, then what guidance and fewer steps change."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", default="safelight/shapes")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/shapes_quality.json"))
    parser.add_argument("--grid", type=Path, help="write the first 24 pictures into this file")
    parser.add_argument("--only-default", action="store_true", help="leave the other settings out")
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.model)
    card = checkpoint.card
    assert card.default_guidance_scale is not None
    default = Setting(card.default_num_inference_steps, card.default_guidance_scale)
    others = [
        Setting(default.steps, 1.0),
        Setting(default.steps, 6.0),
        Setting(max(default.steps // 2, 1), default.guidance_scale),
    ]
    pipeline = load_pipeline(checkpoint)
    scenes = held_out_scenes(args.count)
    if args.grid:
        _write_grid(args.grid, [image for _, image in pictures(pipeline, checkpoint, scenes[:24], default)])
    results = []
    for setting in [default] if args.only_default else [default, *others]:
        results.append(
            measure(pipeline, checkpoint, scenes if setting == default else scenes[: args.count // 3], setting)
        )
        _print(results[-1])
    args.output.write_text(json.dumps(_about(args) | {"results": results}, indent=1) + "\n")


def _write_grid(path: Path, images: list[Image.Image]) -> None:
    side = 128
    grid = Image.new("RGB", (8 * side, -(-len(images) // 8) * side))
    for index, image in enumerate(images):
        grid.paste(image.resize((side, side)), (index % 8 * side, index // 8 * side))
    grid.save(path, optimize=True)


def _print(result: dict[str, Any]) -> None:
    print(f"{result['steps']} steps, guidance {result['guidance_scale']}, {result['seconds_per_image']:.2f} s an image")
    for kind in ("single", "pair"):
        row = "  ".join(f"{name} {result[kind][name]:6.1%}" for name in (*PROPERTIES, "everything"))
        print(f"  {kind:6} ({result[kind]['count']})  {row}", flush=True)


def _about(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "command": f"python -m benchmarks.check_shapes {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
        "captions": "held out of training, half with one object, half with two",
        "seed": SEED,
        "count": args.count,
    }


if __name__ == "__main__":
    main()
