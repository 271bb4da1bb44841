"""How long a finished picture takes to become a file: our PNG writer against Pillow's, and the other formats.

``python -m benchmarks.bench_encoding``; one picture of 1024x1024 with the smoothness and the grain of a photograph.
"""

from __future__ import annotations

import argparse
import io
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.machine import circumstances
from benchmarks.processes import ROOT
from safelight.engine.images import encode_image
from safelight.engine.png import encode_png
from safelight.metadata import xmp_packet
from safelight.params import GenerationParams, ImageFormat

_OUTPUT = ROOT / "benchmarks" / "results" / "encoding.json"
_SIDE = 1024
_GRAIN = 3.0
_REPEATS = 9


def picture() -> Image.Image:
    """Broad colours of three scales, and grain: neither flat nor noise."""
    source = np.random.default_rng(0)
    pixels = np.zeros((_SIDE, _SIDE, 3))
    for cells in (4, 16, 64):
        coarse = Image.fromarray(source.integers(0, 255, (cells, cells, 3), dtype=np.uint8))
        pixels += np.asarray(coarse.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), float) / 3
    pixels += source.normal(0, _GRAIN, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _pillow(image: Image.Image, level: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def _as(image: Image.Image, image_format: ImageFormat) -> bytes:
    params = GenerationParams(
        prompt="a",
        width=_SIDE,
        height=_SIDE,
        num_inference_steps=1,
        max_sequence_length=1,
        seed=0,
        output_format=image_format,
    )
    return encode_image(image, params, 0, "bench").data


def measure(encode: Callable[[], bytes]) -> dict[str, float]:
    """Median time and size."""
    seconds = []
    for _ in range(_REPEATS):
        start_s = time.perf_counter()
        data = encode()
        seconds.append(time.perf_counter() - start_s)
    return {"ms": round(statistics.median(seconds) * 1e3, 2), "megabytes": round(len(data) / 1e6, 3)}


def main() -> None:
    """Prints the figures and writes them down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=_OUTPUT)
    args = parser.parse_args()
    image = picture()
    ways: dict[str, Callable[[], bytes]] = {
        "ours": lambda: encode_png(image, {}, xmp_packet()),
        "Pillow level 1": lambda: _pillow(image, 1),
        "Pillow level 2": lambda: _pillow(image, 2),
        "Pillow level 6": lambda: _pillow(image, 6),
        "JPEG 90": lambda: _as(image, ImageFormat.JPEG),
        "WebP 90": lambda: _as(image, ImageFormat.WEBP),
    }
    found = {name: measure(encode) for name, encode in ways.items()}
    for name, figures in found.items():
        print(f"{name:16} {figures['ms']:8.1f} ms {figures['megabytes']:6.2f} MB")
    ratio = round(found["Pillow level 1"]["ms"] / found["ours"]["ms"], 1)
    print(f"ours is {ratio} times as fast as Pillow's level 1")
    where = circumstances(shlex.join(["python", "-m", "benchmarks.bench_encoding", *sys.argv[1:]]))
    result = {**where, "side": _SIDE, "formats": found, "times_as_fast_as_level_1": ratio}
    args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
