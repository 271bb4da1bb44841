"""``ModelManager`` in this process, over a tiny random FLUX of the real classes."""

from __future__ import annotations

import asyncio
import contextvars
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from safelight.checkpoint import Checkpoint, open_checkpoint
from safelight.engine.drawing_job import DrawingJob
from safelight.engine.model_manager import ModelManager
from safelight.errors import BadOutput, Unavailable
from safelight.params import GenerationParams
from safelight.protocol import LoadProgress


def _params(**changes: Any) -> GenerationParams:
    defaults: dict[str, Any] = {
        "prompt": "a red circle",
        "width": 64,
        "height": 64,
        "num_inference_steps": 3,
        "guidance_scale": 3.5,
        "max_sequence_length": 16,
        "seed": 1,
    }
    return GenerationParams(**(defaults | changes))


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(str(tiny_checkpoint))


def _with_manager(checkpoint: Checkpoint, use: Callable[[ModelManager], Awaitable[None]]) -> None:
    async def run() -> None:
        async with ModelManager() as manager:
            await manager.load_model(checkpoint, "cpu")
            await use(manager)

    asyncio.run(run())


def test_the_design_notes_names_are_there() -> None:
    manager = ModelManager()
    assert manager.executor._max_workers == 1
    for name in ("load_model", "generate_image", "warmup", "cleanup"):
        assert asyncio.iscoroutinefunction(getattr(manager, name)), name
    for name in ("_load_model_sync", "_generate_image_sync"):
        assert not asyncio.iscoroutinefunction(getattr(manager, name)), name
    manager.executor.shutdown()


def test_importing_the_manager_leaves_torch_out() -> None:
    code = "import safelight.engine.worker, sys; raise SystemExit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_load_progress_is_monotonic_and_ends_at_all_bytes(checkpoint: Checkpoint) -> None:
    async def run() -> list[LoadProgress]:
        seen: list[LoadProgress] = []
        async with ModelManager() as manager:
            await manager.load_model(checkpoint, "cpu", on_progress=seen.append)
        return seen

    seen = asyncio.run(run())
    done = [progress.bytes_done for progress in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].bytes_total == checkpoint.weight_bytes
    assert seen[0].phase == "import"
    assert {progress.component for progress in seen} >= {"text_encoder", "text_encoder_2", "transformer", "vae"}


def test_images_equal_those_of_from_pretrained(checkpoint: Checkpoint) -> None:
    import numpy as np
    import torch
    from diffusers import FluxPipeline

    reference = FluxPipeline.from_pretrained(checkpoint.path)
    reference.set_progress_bar_config(disable=True)
    expected = reference(
        "a red circle",
        width=64,
        height=64,
        num_inference_steps=3,
        guidance_scale=3.5,
        max_sequence_length=16,
        generator=torch.Generator("cpu").manual_seed(1),
    ).images[0]

    async def use(manager: ModelManager) -> None:
        generation = await manager.generate_image(_params())
        # Mapped weights lie unaligned in memory, so the reference's matrix kernels may round otherwise.
        difference = np.abs(np.asarray(generation.images[0], int) - np.asarray(expected, int))
        assert difference.max() <= 1

    _with_manager(checkpoint, use)


def test_steps_are_reported_from_the_gpu_thread_with_the_callers_context(checkpoint: Checkpoint) -> None:
    job = contextvars.ContextVar("job", default="none")
    seen: list[tuple[int, int, str, str]] = []

    def on_step(step: int, total: int) -> None:
        seen.append((step, total, threading.current_thread().name, job.get()))

    async def use(manager: ModelManager) -> None:
        job.set("job_1")
        await manager.generate_image(_params(num_images=2), on_step)

    _with_manager(checkpoint, use)
    assert [(step, total) for step, total, _, _ in seen] == [(step, 6) for step in range(1, 7)]
    assert {name for _, _, name, _ in seen} == {"gpu_0"}
    assert {context for _, _, _, context in seen} == {"job_1"}


def test_cancelling_the_task_stops_within_one_step_and_the_next_image_is_whole(checkpoint: Checkpoint) -> None:
    async def use(manager: ModelManager) -> None:
        alone = await manager.generate_image(_params())
        steps: list[int] = []
        loop = asyncio.get_running_loop()
        reached = asyncio.Event()

        def on_step(step: int, _total: int) -> None:
            steps.append(step)
            if step == 5:
                loop.call_soon_threadsafe(reached.set)
                time.sleep(0.2)  # so that the cancel arrives during this step

        task = asyncio.create_task(manager.generate_image(_params(num_inference_steps=100), on_step))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert steps == [1, 2, 3, 4, 5]
        after = await manager.generate_image(_params())
        assert after.images[0].tobytes() == alone.images[0].tobytes()

    _with_manager(checkpoint, use)


def test_cancelling_a_load_stops_it(checkpoint: Checkpoint) -> None:
    async def run() -> None:
        manager = ModelManager()
        loop = asyncio.get_running_loop()
        reached = asyncio.Event()

        def on_progress(progress: LoadProgress) -> None:
            if progress.component == "text_encoder_2":
                loop.call_soon_threadsafe(reached.set)
                time.sleep(0.2)

        task = asyncio.create_task(manager.load_model(checkpoint, "cpu", on_progress=on_progress))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(Unavailable):
            await manager.generate_image(_params())
        await manager.cleanup()

    asyncio.run(run())


def test_warmup_makes_a_real_image_of_each_size(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    async def use(manager: ModelManager) -> None:
        make = manager._generate_image_sync

        def watched(job: DrawingJob) -> None:
            make(job)
            sizes.append(job.outcome.result().images[0].size)

        monkeypatch.setattr(manager, "_generate_image_sync", watched)
        await manager.warmup([(64, 64), (96, 64)])
        assert manager.phase_seconds["warmup"] > 0
        # Whole rows of the small size that a device is measured with: 256 tokens and 512 of text.
        assert manager.batch_tokens and manager.batch_tokens % 768 == 0

    _with_manager(checkpoint, use)
    assert sizes == [(64, 64), (96, 64)]


def test_cleanup_frees_the_model_ends_the_thread_and_may_be_repeated(checkpoint: Checkpoint) -> None:
    async def use(manager: ModelManager) -> None:
        await manager.generate_image(_params())
        assert manager._batch is not None
        model = weakref.ref(manager._batch.model)
        await manager.cleanup()
        await manager.cleanup()
        assert model() is None
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("gpu")]

    _with_manager(checkpoint, use)


def test_a_picture_of_nan_is_an_error_not_a_black_image(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_checkpoint, tmp_path / "nan")
    for shard in (folder / "vae").glob("*.safetensors"):
        tensors = load_file(shard)  # they stay numbers, or would not load; what is computed from them does not
        save_file({name: tensor * 1e30 for name, tensor in tensors.items()}, shard)

    async def use(manager: ModelManager) -> None:
        with pytest.raises(BadOutput):
            await manager.generate_image(_params())

    _with_manager(open_checkpoint(str(folder)), use)


def test_warnings_name_unknown_words_and_cut_prompts(checkpoint: Checkpoint) -> None:
    async def use(manager: ModelManager) -> None:
        generation = await manager.generate_image(_params(prompt="a red zeppelin, a blue Gnu", num_inference_steps=1))
        assert generation.warnings == ["the model does not know: zeppelin, gnu"]
        generation = await manager.generate_image(_params(prompt="a red circle " * 10, num_inference_steps=1))
        assert generation.warnings == ["the prompt has 31 tokens; those after the first 16 are cut off"]
        assert generation.text_tokens == 31

    _with_manager(checkpoint, use)
