"""What the adapter ``pastel`` does to the embedded model's pictures: ``python -m benchmarks.check_pastel [--count N]``.

Held-out captions, drawn by the engine with and without it; the judge of ``check_shapes`` wants the same things in pale
colours. Writes ``benchmarks/results/pastel.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.check_shapes import held_out_scenes, shares_of
from safelight.checkpoint import open_checkpoint
from safelight.config import EMBEDDED_MODEL
from safelight.engine.model_manager import ModelManager
from safelight.params import GenerationParams, LoraUse
from training.captions import caption
from training.checker import judge
from training.pastel import pale
from training.scenes import Scene

NAME = "pastel"
_SIDE = 96


async def pictures(manager: ModelManager, scenes: list[Scene], scale: float) -> list[Image.Image]:
    """One picture of each scene's plain caption; without the adapter if ``scale`` is 0."""
    assert manager.checkpoint is not None
    card = manager.checkpoint.card
    made = []
    for seed, scene in enumerate(scenes):
        params = GenerationParams(
            prompt=caption(scene),
            width=card.default_width,
            height=card.default_height,
            num_inference_steps=card.default_num_inference_steps,
            guidance_scale=card.default_guidance_scale,
            max_sequence_length=card.max_sequence_length,
            seed=seed,
            loras=(LoraUse(NAME, scale),) if scale else (),
        )
        made += (await manager.generate_image(params)).images
    return made


def lightness(images: list[Image.Image]) -> float:
    """Mean of (largest + smallest primary) / 2, from 0 to 1: HSL's L."""
    pixels = np.stack([np.asarray(image, float) for image in images]) / 255
    return float((pixels.max(-1) + pixels.min(-1)).mean() / 2)


async def measure(count: int, grid: Path | None) -> dict[str, Any]:
    """Shares of right properties with the adapter, and how light the pictures are with and without."""
    scenes = held_out_scenes(count)
    async with ModelManager() as manager:
        await manager.load_model(open_checkpoint(EMBEDDED_MODEL), "cpu")
        plain, pastel = [await pictures(manager, scenes, scale) for scale in (0.0, 1.0)]
    if grid is not None:
        write_grid(grid, [plain[:10], pastel[:10]])
    verdicts = [judge(np.asarray(image), pale(scene)) for image, scene in zip(pastel, scenes, strict=True)]
    without = [judge(np.asarray(image), scene) for image, scene in zip(plain, scenes, strict=True)]
    return {
        "with": shares_of(verdicts) | {"lightness": round(lightness(pastel), 4)},
        "without": shares_of(without) | {"lightness": round(lightness(plain), 4)},
    }


def write_grid(path: Path, rows: list[list[Image.Image]]) -> None:
    """The pictures of each list side by side."""
    grid = Image.new("RGB", (len(rows[0]) * _SIDE, len(rows) * _SIDE))
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            grid.paste(image.resize((_SIDE, _SIDE)), (column * _SIDE, row * _SIDE))
    grid.save(path, optimize=True)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/pastel.json"))
    parser.add_argument("--grid", type=Path, help="write ten pictures without the adapter and ten with it")
    args = parser.parse_args()
    about = {
        "command": f"python -m benchmarks.check_pastel {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "device": f"CPU, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__},
    }
    found = asyncio.run(measure(args.count, args.grid))
    print(json.dumps(found, indent=1))
    args.output.write_text(json.dumps(about | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
