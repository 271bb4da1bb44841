"""An engine without a model: coloured noise after as many steps as asked, for tests of everything around an engine.

``STUB_STEP_S`` and ``STUB_LOAD_S`` in the environment set its speed in seconds. The prompt ``out of memory`` fails.
"""

from __future__ import annotations

import os
import random
import threading
import time

from PIL import Image

from safelight.checkpoint import Checkpoint
from safelight.engine.failures import check_picture, failure_of, reach
from safelight.engine.load_report import LoadReport, OnLoadProgress
from safelight.engine.model_manager import Generation, ModelManager, OnStep, end_step
from safelight.engine.previews import OnPreview, preview_steps
from safelight.engine.sources import Source
from safelight.params import GenerationParams

_TILES = 8
_FAILING_PROMPT = "out of memory"


class StubEngine(ModelManager):
    """The same threads, progress, cancelling and failures as the real one; no torch."""

    def _load_model_sync(
        self,
        checkpoint: Checkpoint,
        device: str,
        dtype: str,
        on_progress: OnLoadProgress,
        cancelled: threading.Event,
    ) -> None:
        report = LoadReport(len(checkpoint.components), checkpoint.weight_bytes, on_progress, cancelled)
        reach("engine.load")
        for component in checkpoint.components:
            with report.component(component.name, component.weight_bytes), report.phase("weights"):
                time.sleep(_seconds("STUB_LOAD_S", 0.05) / len(checkpoint.components))
        self.checkpoint = checkpoint
        self.phase_seconds = report.phase_seconds

    def _generate_image_sync(
        self,
        params: GenerationParams,
        on_step: OnStep | None,
        on_preview: OnPreview | None,
        source: Source | None,
        cancelled: threading.Event,
    ) -> Generation:
        start = time.monotonic()
        try:
            images = self._draw_all(params, on_step, on_preview, source, cancelled)
        except RuntimeError as error:
            raise failure_of(error, params) or error from error
        seconds = {"generate": time.monotonic() - start}
        return Generation(images, [], len(params.prompt.split()), seconds)

    def _draw_all(
        self,
        params: GenerationParams,
        on_step: OnStep | None,
        on_preview: OnPreview | None,
        source: Source | None,
        cancelled: threading.Event,
    ) -> list[Image.Image]:
        if on_step is not None:
            reach("engine.begin")
        if params.prompt == _FAILING_PROMPT:
            raise RuntimeError(params.prompt)
        images = []
        shown, steps = preview_steps(params.steps_per_image, params.partial_images), params.steps_per_image
        for index, seed in enumerate(params.seeds):
            for step in range(steps):
                time.sleep(_seconds("STUB_STEP_S", 0.01))
                if on_preview is not None and step + 1 in shown:
                    on_preview(index, step + 1, draw(params, seed))
                end_step(index * steps + step + 1, params.total_steps, on_step, cancelled)
            action = reach("engine.decode") if on_step is not None else None
            check_picture(is_finite=action != "nan", spread=0.0 if action == "flat" else 1.0)
            images.append(_changed(source, params, draw(params, seed)) if source else draw(params, seed))
        return images

    def _cleanup_sync(self, _cancelled: threading.Event) -> None:
        self.checkpoint = None


def draw(params: GenerationParams, seed: int) -> Image.Image:
    """The same tiles for the same prompt, seed, size and steps."""
    source = random.Random(f"{params.prompt}|{seed}|{params.width}x{params.height}|{params.num_inference_steps}")  # noqa: S311
    tiles = Image.frombytes("RGB", (_TILES, _TILES), source.randbytes(3 * _TILES * _TILES))
    return tiles.resize((params.width, params.height), Image.Resampling.NEAREST)


def _changed(source: Source, params: GenerationParams, drawn: Image.Image) -> Image.Image:
    assert params.source is not None
    return source.keep_outside_mask(Image.blend(source.image, drawn, params.source.strength))


def _seconds(name: str, default: float) -> float:
    return float(os.environ.get(name, default))
