"""``ModelManager``: one model on one device, driven through one GPU thread."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from safelight.checkpoint import Checkpoint
from safelight.engine import pipelines
from safelight.engine.batch import Batch, OnWarm
from safelight.engine.batch_size import measure_batch_tokens
from safelight.engine.drawing_job import DrawingJob, Generation, OnStep
from safelight.engine.failures import reach
from safelight.engine.load_report import LoadReport, OnLoadProgress
from safelight.engine.memory import OnMemory, limit_memory, memory_of
from safelight.engine.memory_plan import MemoryPlan, plan_patiently
from safelight.engine.options import EngineOptions
from safelight.engine.previews import OnPreview
from safelight.engine.sources import Source
from safelight.engine.team import Share, Team
from safelight.engine.timeline import Timeline
from safelight.engine.weight_files import read_ahead
from safelight.engine.working_memory import check_fits, fitted, measure_step_bytes
from safelight.errors import JobCancelled, Unavailable
from safelight.hub.manifest import has_manifest
from safelight.hub.verification import verify
from safelight.lora.directory import AdapterDirectories
from safelight.model_card import Task
from safelight.params import GenerationParams, SourceImage
from safelight.protocol import Fit, TeamPlace

log = logging.getLogger(__name__)

T = TypeVar("T")

_WARMUP_STEPS = 2
_KEPT_TEAMS = 4


class ModelManager:
    """One model on one device. Async methods touch no torch; each ``_x_sync`` twin runs on the GPU thread only.

    Jobs that are awaited at the same time share denoising steps where that gains. Cancelling the task that awaits a
    method stops the work itself at its next denoising step or tensor, and the method returns (with ``CancelledError``)
    only when the work has stopped.
    """

    def __init__(self) -> None:
        # One thread: pictures of several jobs share a step, and CUDA graphs replay only on the thread that captured
        # them.
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gpu")
        self.checkpoint: Checkpoint | None = None
        self.phase_seconds: dict[str, float] = {}
        self.batch_tokens = 0
        """Tokens up to which jobs of one shape gain by sharing a step; 0: never."""
        self.fit: Fit | None = None
        """How the model was fitted into the memory, once it is warm."""
        self.on_warm: OnWarm = lambda *_: None
        self.on_memory: OnMemory = lambda _: None
        """Told after each job, from the GPU thread."""
        self._batch: Batch | None = None
        self._teams: OrderedDict[str, Team] = OrderedDict()
        self._device = "cpu"
        self._limit_bytes = 0
        self._plan: MemoryPlan | None = None
        self._step_bytes: float | None = None
        self._closed = False

    async def __aenter__(self) -> ModelManager:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cleanup()

    async def load_model(
        self,
        checkpoint: Checkpoint,
        device: str,
        options: EngineOptions = EngineOptions(),  # noqa: B008  (frozen)
        on_progress: OnLoadProgress = lambda _: None,
    ) -> None:
        """Imports the libraries, builds the model and moves it to ``device``. Raises a leaf of ``LoadError``."""
        await self._on_gpu_thread(self._load_model_sync, checkpoint, device, options, on_progress)

    def _load_model_sync(
        self,
        checkpoint: Checkpoint,
        device: str,
        options: EngineOptions,
        on_progress: OnLoadProgress,
        cancelled: threading.Event,
    ) -> None:
        report = LoadReport(len(checkpoint.components), checkpoint.weight_bytes, on_progress, cancelled)
        reach("engine.load")
        self._limit_bytes = options.memory_limit_bytes
        model = self._build(checkpoint, device, options, report)
        self._batch = Batch(model, lambda *use: self.on_warm(*use))
        self._batch.max_rows = options.batch_limit
        self.checkpoint = checkpoint
        self._device = device
        self.phase_seconds = report.phase_seconds

    def _build(self, checkpoint: Checkpoint, device: str, options: EngineOptions, report: LoadReport) -> Any:
        """The model that a ``Batch`` drives."""
        options.prepare_process()
        for folder, is_used in checkpoint.folders.items():
            if not has_manifest(folder):
                continue
            with report.phase("verify"):
                verify(folder, lambda name: report.looking_at(name.rpartition("/")[0] or None), is_used)
                report.looking_at(None)
        read_ahead(checkpoint)  # while the libraries are imported
        with report.phase("import"):
            pipelines.import_libraries()
            from safelight.engine.flux.model import FluxModel
            from safelight.engine.flux.residency import residency_for
        plan = self._plan = plan_patiently(checkpoint, device, options)
        limit_memory(device, options.memory_limit_bytes)
        log.info("%s on %s takes about %s", checkpoint.card.id, device, plan)
        if plan.note:
            log.warning("%s: %s", checkpoint.card.id, plan.note)
        dtype = plan.number_format.dtype
        pipeline = pipelines.build_pipeline(checkpoint, device, dtype, report, plan.hosted)
        return FluxModel(
            pipeline,
            residency_for(device, plan.mode),
            float8=plan.number_format.is_float8,
            step_cache=options.step_cache,
            loras=AdapterDirectories.of(checkpoint, options.loras_dir),
            lora_cache_bytes=options.lora_cache_mb * 1_000_000,
        )

    async def warmup(self, sizes: Sequence[tuple[int, int]]) -> None:
        """A real generation of two steps per size (width, height in pixels), so that first uses are paid for; then
        measures how many rows gain by sharing a step.
        """
        start = time.monotonic()
        card = self._loaded_checkpoint.card
        # The text weighs more with a small picture: what a pixel takes would be too much for larger ones.
        largest = max([*sizes, (card.default_width, card.default_height)], key=math.prod)
        await self._on_gpu_thread(self._measure_step_sync, self._warmup_params(*largest))
        for width, height in sizes:
            await self._on_gpu_thread(self._warmup_sync, self._warmup_params(width, height))
        await self._on_gpu_thread(self._measure_sync)
        self.phase_seconds["warmup"] = time.monotonic() - start

    def _measure_step_sync(self, params: GenerationParams, _cancelled: threading.Event) -> None:
        self._step_bytes = measure_step_bytes(self._loaded_batch.model, params, self._device)

    def _warmup_sync(self, params: GenerationParams, cancelled: threading.Event) -> None:
        reach("engine.warmup")
        params, source = self._as_usual(params)
        job = DrawingJob(params, source=source)
        job.cancelled = cancelled
        self._loaded_batch.join(job)
        self._generate_image_sync(job)
        job.outcome.result()

    def _as_usual(self, params: GenerationParams) -> tuple[GenerationParams, Source | None]:
        """What people will ask like this: of a model that edits, with a picture to look at."""
        card = self._loaded_checkpoint.card
        if Task.EDITING not in card.tasks:
            return params, None
        size = card.reference_size(params.width, params.height)
        edit = msgspec.structs.replace(params, source=SourceImage("", reference_size=size))
        return edit, Source.to_look_at(*size)

    def _measure_sync(self, cancelled: threading.Event) -> None:
        card = self._loaded_checkpoint.card
        batch = self._loaded_batch
        params = self._warmup_params(*card.probe_size)
        batch.max_tokens = measure_batch_tokens(batch.model, params, batch.max_rows, cancelled)
        self.batch_tokens = 0 if batch.max_rows == 1 else batch.max_tokens
        if self._plan is not None:
            batch.model.free_memory()
            self.fit = fitted(self._plan, self._step_bytes, self._device, self._limit_bytes)
            batch.max_pixels = self.fit.max_pixels
            if self.fit.max_pixels:
                log.info("room for a step: %s", self.fit.room)

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
        timeline: Timeline | None = None,
        share: Share | None = None,
    ) -> Generation:
        """All images of one job; ``timeline`` gets when what was done. With a ``share`` all members of its team are
        asked for the same; only the leader has images.

        Raises a leaf of ``GenerationError``, ``LoraInvalid``; ``Unavailable`` if no model is loaded; with a share
        ``TeamLost``, and ``JobCancelled`` where the leader was cancelled.
        """
        check_fits(params, self.fit, self._device)
        if params.loras:
            await asyncio.to_thread(self._loaded_batch.model.prepare, params)
        job = DrawingJob(params, on_step, on_preview, source, timeline, share)
        self._loaded_batch.join(job)
        self.executor.submit(self._generate_image_sync, job)
        outcome = asyncio.wrap_future(job.outcome)
        try:
            return await asyncio.shield(outcome)
        except asyncio.CancelledError:
            job.cancelled.set()
            await _ended(outcome)
            raise

    def _generate_image_sync(self, job: DrawingJob) -> None:
        """Drives the batch, whoever else is in it, until ``job`` is over; it may be, through an earlier call."""
        batch = self._loaded_batch
        try:
            while not job.is_over:
                batch.advance()
        except Exception as error:
            log.exception("a defect of the batch")
            batch.fail(error)
        if job.outcome.exception() is None:  # of a device that broke there is nothing to ask
            self.on_memory(memory_of(self._device, self._limit_bytes))

    def share(self, place: TeamPlace, params: GenerationParams) -> Share:
        """This worker's part of a job that a team is to make; the team is known from its last job, or will meet."""
        team = self._teams.pop(place.rendezvous, None) or self._new_team(place)
        self._teams[place.rendezvous] = team
        while len(self._teams) > _KEPT_TEAMS:
            self._teams.popitem(last=False)[1].abort()
        return Share(team, place, params.total_steps)

    def _new_team(self, place: TeamPlace) -> Team:
        return Team(place, self._device)

    def end_share(self, share: Share, error: BaseException | None) -> None:
        """The job is over; the others of its team must know, in case that it never came to the GPU thread."""
        self.executor.submit(share.end, error)

    async def cleanup(self) -> None:
        """Frees the model and ends the GPU thread; calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        await self._on_gpu_thread(self._cleanup_sync)
        await asyncio.to_thread(self.executor.shutdown)

    def _cleanup_sync(self, _cancelled: threading.Event) -> None:
        batch, self._batch = self._batch, None
        for team in self._teams.values():
            team.abort()
        if batch is not None:
            batch.fail(Unavailable("the model was unloaded"))
            model = batch.model
            del batch
            gc.collect()
            model.free_memory()

    @property
    def _loaded_batch(self) -> Batch:
        if self._batch is None:
            raise Unavailable("no model is loaded")
        return self._batch

    @property
    def _loaded_checkpoint(self) -> Checkpoint:
        if self.checkpoint is None:
            raise Unavailable("no model is loaded")
        return self.checkpoint

    async def _on_gpu_thread(self, function: Callable[..., T], *args: object) -> T:
        """Runs ``function(*args, cancelled)`` on the GPU thread."""
        cancelled = threading.Event()
        work = asyncio.get_running_loop().run_in_executor(self.executor, functools.partial(function, *args, cancelled))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            cancelled.set()
            await _ended(work)
            raise


async def _ended(work: asyncio.Future[Any]) -> None:
    """The thread cannot be interrupted, only asked. Whoever comes next needs it free."""
    await asyncio.wait([work])
    if not work.cancelled() and not isinstance(work.exception(), (JobCancelled, type(None))):
        log.warning("cancelled work ended with %r", work.exception())
