"""``ModelManager``: one model on one device, driven through one GPU thread."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from safelight.checkpoint import Checkpoint
from safelight.engine import pipelines
from safelight.engine.failures import check_picture, failure_of, reach
from safelight.engine.load_report import LoadReport, OnLoadProgress
from safelight.engine.previews import LatentColours, OnPreview, PreviewTap
from safelight.engine.prompts import count_tokens, prompt_warnings
from safelight.engine.sources import Source
from safelight.errors import JobCancelled, OutOfMemory, Unavailable
from safelight.params import GenerationParams

if TYPE_CHECKING:
    from diffusers import FluxPipeline
    from PIL.Image import Image

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
OnStep = Callable[[int, int], None]
"""Called on the GPU thread after each denoising step with (steps done, total steps)."""

_WARMUP_STEPS = 2


@dataclass(frozen=True, slots=True)
class Generation:
    """Pictures of one job, in the order of its seeds; ``seconds`` maps stages to their time."""

    images: list[Image]
    warnings: list[str]
    text_tokens: int
    seconds: dict[str, float]


class ModelManager:
    """One model on one device. Async methods touch no torch; each ``_x_sync`` twin runs on the GPU thread only.

    Cancelling the task that awaits a method stops the work itself at its next denoising step or tensor, and the
    method returns (with ``CancelledError``) only when the thread is free again.
    """

    def __init__(self) -> None:
        # One thread: the noise scheduler keeps its step index, and CUDA graphs replay only on the thread that
        # captured them.
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gpu")
        self.checkpoint: Checkpoint | None = None
        self.phase_seconds: dict[str, float] = {}
        self._pipeline: FluxPipeline | None = None
        self._colours: LatentColours | None = None
        self._closed = False

    async def __aenter__(self) -> ModelManager:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cleanup()

    async def load_model(
        self, checkpoint: Checkpoint, device: str, dtype: str = "auto", on_progress: OnLoadProgress = lambda _: None
    ) -> None:
        """Imports the libraries, builds the pipeline and moves it to ``device``. Raises a leaf of ``LoadError``."""
        await self._on_gpu_thread(self._load_model_sync, checkpoint, device, dtype, on_progress)

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
        with report.phase("import"):
            pipelines.import_libraries()
        dtype = pipelines.resolve_dtype(dtype, device)
        pipelines.check_memory(checkpoint, device, dtype)
        self._pipeline = pipelines.build_pipeline(checkpoint, device, dtype, report)
        self._colours = LatentColours.fit(self._pipeline.vae)
        self.checkpoint = checkpoint
        self.phase_seconds = report.phase_seconds

    async def warmup(self, sizes: Sequence[tuple[int, int]]) -> None:
        """A real generation of two steps per size (width, height in pixels), so that first uses are paid for."""
        start = time.monotonic()
        for width, height in sizes:
            await self._on_gpu_thread(self._warmup_sync, self._warmup_params(width, height))
        self.phase_seconds["warmup"] = time.monotonic() - start

    def _warmup_sync(self, params: GenerationParams, cancelled: threading.Event) -> None:
        reach("engine.warmup")
        self._generate_image_sync(params, None, None, None, cancelled)

    def _warmup_params(self, width: int, height: int) -> GenerationParams:
        card = self._loaded_checkpoint.card
        return GenerationParams(
            prompt="a red circle on a blue background",
            width=width,
            height=height,
            num_inference_steps=_WARMUP_STEPS,
            guidance_scale=card.default_guidance_scale,
            max_sequence_length=card.max_sequence_length,
            seed=0,
        )

    async def generate_image(
        self,
        params: GenerationParams,
        on_step: OnStep | None = None,
        on_preview: OnPreview | None = None,
        source: Source | None = None,
    ) -> Generation:
        """All images of one job. Raises a leaf of ``GenerationError``; ``Unavailable`` if no model is loaded."""
        return await self._on_gpu_thread(self._generate_image_sync, params, on_step, on_preview, source)

    def _generate_image_sync(
        self,
        params: GenerationParams,
        on_step: OnStep | None,
        on_preview: OnPreview | None,
        source: Source | None,
        cancelled: threading.Event,
    ) -> Generation:
        pipeline = self._loaded_pipeline
        start = time.monotonic()
        images: list[Image] = []
        is_job = on_step is not None
        try:
            if is_job:
                reach("engine.begin")
            for index, seed in enumerate(params.seeds):
                tap = self._tap(params, index, on_preview)
                after_step = functools.partial(
                    _after_step, index * params.steps_per_image, params.total_steps, on_step, tap, cancelled
                )
                pixels = _run_pipeline(pipeline, params, seed, after_step, tap, source)
                image = _as_picture(pipeline, pixels, reach("engine.decode") if is_job else None)
                images.append(source.keep_outside_mask(image) if source else image)
        except RuntimeError as error:
            failure = failure_of(error, params)
            if isinstance(failure, OutOfMemory):
                _free_memory_of(error)
            raise failure or error from error
        finally:
            pipeline.maybe_free_model_hooks()
        return Generation(
            images,
            prompt_warnings(pipeline, params),
            count_tokens(pipeline, params.prompt),
            {"generate": time.monotonic() - start},
        )

    def _tap(self, params: GenerationParams, index: int, on_preview: OnPreview | None) -> PreviewTap | None:
        if not params.partial_images or on_preview is None or self._colours is None:
            return None
        return PreviewTap(self._colours, params, index, on_preview)

    async def cleanup(self) -> None:
        """Frees the model and ends the GPU thread; calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        await self._on_gpu_thread(self._cleanup_sync)
        await asyncio.to_thread(self.executor.shutdown)

    def _cleanup_sync(self, _cancelled: threading.Event) -> None:
        had_pipeline = self._pipeline is not None
        self._pipeline = self._colours = None
        gc.collect()
        if had_pipeline:
            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    @property
    def _loaded_pipeline(self) -> FluxPipeline:
        if self._pipeline is None:
            raise Unavailable("no model is loaded")
        return self._pipeline

    @property
    def _loaded_checkpoint(self) -> Checkpoint:
        if self.checkpoint is None:
            raise Unavailable("no model is loaded")
        return self.checkpoint

    async def _on_gpu_thread(self, function: Callable[..., T], *args: object) -> T:
        """Runs ``function(*args, cancelled)`` on the GPU thread with the caller's contextvars."""
        cancelled = threading.Event()
        call = functools.partial(contextvars.copy_context().run, function, *args, cancelled)
        work = asyncio.get_running_loop().run_in_executor(self.executor, call)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            cancelled.set()
            # The thread cannot be interrupted, only asked. Whoever comes next needs it free.
            await asyncio.wait([work])
            if not work.cancelled() and not isinstance(work.exception(), (JobCancelled, type(None))):
                log.warning("cancelled work ended with %r", work.exception())
            raise


def _run_pipeline(
    pipeline: FluxPipeline,
    params: GenerationParams,
    seed: int,
    after_step: Callable[..., Any],
    tap: PreviewTap | None,
    source: Source | None,
) -> Any:
    """One picture as a tensor of shape (1, 3, height, width), values 0..1."""
    uses_cfg = params.true_cfg_scale > 1
    if source is None:
        beginning = {"latents": _noise(pipeline, params, seed)}
        if tap:
            tap.begin(beginning["latents"])
    else:
        pipeline, beginning = pipelines.for_source(pipeline, params, source, seed)
    return pipeline(
        prompt=params.prompt,
        negative_prompt=(params.negative_prompt or "") if uses_cfg else None,
        true_cfg_scale=params.true_cfg_scale,
        width=params.width,
        height=params.height,
        num_inference_steps=params.num_inference_steps,
        guidance_scale=params.guidance_scale or 0.0,
        max_sequence_length=params.max_sequence_length,
        output_type="pt",
        callback_on_step_end=after_step,
        **beginning,
    ).images


def _noise(pipeline: FluxPipeline, params: GenerationParams, seed: int) -> Any:
    """What the pipeline itself would begin with; a CPU generator gives the same on every device."""
    import torch

    latents, _ids = pipeline.prepare_latents(
        1,
        pipeline.transformer.config.in_channels // 4,
        params.height,
        params.width,
        pipeline.text_encoder_2.dtype,
        pipeline.transformer.device,
        torch.Generator("cpu").manual_seed(seed),
    )
    return latents


def _as_picture(pipeline: FluxPipeline, pixels: Any, action: str | None) -> Image:
    """Raises ``BadOutput``. ``action`` is what a test asks to be done to the pixels."""
    if action in ("nan", "flat"):
        pixels = pixels * float("nan") if action == "nan" else pixels * 0
    check_picture(is_finite=bool(pixels.isfinite().all()), spread=float(pixels.max() - pixels.min()))
    image: Image = pipeline.image_processor.numpy_to_pil(pipeline.image_processor.pt_to_numpy(pixels))[0]
    return image


def _free_memory_of(error: RuntimeError) -> None:
    """Lets go of what the failed call held, so that the next one finds the memory free."""
    import torch

    traceback.clear_frames(error.__traceback__)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def end_step(done: int, total_steps: int, on_step: OnStep | None, cancelled: threading.Event) -> None:
    """A denoising step ended. Raises ``JobCancelled`` if it was asked for meanwhile."""
    if on_step is not None:
        reach("engine.step")
        on_step(done, total_steps)
    if cancelled.is_set():
        raise JobCancelled(f"cancelled after step {done} of {total_steps}")


def _after_step(
    steps_before: int,
    total_steps: int,
    on_step: OnStep | None,
    tap: PreviewTap | None,
    cancelled: threading.Event,
    pipeline: FluxPipeline,
    step_index: int,
    _timestep: object,
    tensors: dict[str, Any],
) -> dict[str, Any]:
    """diffusers' ``callback_on_step_end``. Raising stops at once; its ``_interrupt`` would still decode."""
    if tap:
        tap.after_step(pipeline, step_index + 1, tensors["latents"])
    end_step(steps_before + step_index + 1, total_steps, on_step, cancelled)
    return tensors
