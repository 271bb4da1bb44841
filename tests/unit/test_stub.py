"""The engine without a model: repeatable pictures, and the same ways to fail as the real one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from safelight import faults
from safelight.checkpoint import open_checkpoint
from safelight.config import STUB_MODEL
from safelight.engine.failures import check_picture, failure_of
from safelight.engine.stub import StubEngine
from safelight.errors import BadOutput, DeviceFault, GenerationError, OutOfMemory
from safelight.protocol import LoadProgress
from tests.unit.running_front import params

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("STUB_STEP_S", "0.002")
    yield
    faults._rules.clear()


@pytest.fixture
async def manager() -> AsyncIterator[StubEngine]:
    made = StubEngine()
    async with made:
        await made.load_model(open_checkpoint(STUB_MODEL), "cpu")
        yield made


def _no_step(_step: int, _total: int) -> None:
    pass


async def test_loading_tells_its_progress() -> None:
    seen: list[LoadProgress] = []
    async with StubEngine() as manager:
        checkpoint = open_checkpoint(STUB_MODEL)
        await manager.load_model(checkpoint, "cpu", on_progress=seen.append)
        await manager.warmup([(64, 64)])
        assert seen[-1].bytes_done == checkpoint.weight_bytes > 0
        assert set(manager.phase_seconds) == {"weights", "warmup"}


async def test_the_same_params_make_the_same_picture_and_another_seed_another(manager: StubEngine) -> None:
    first = await manager.generate_image(params(num_images=2))
    again = await manager.generate_image(params())
    assert [image.size for image in first.images] == [(64, 64)] * 2
    assert first.images[0].tobytes() == again.images[0].tobytes() != first.images[1].tobytes()
    assert first.text_tokens == 3


async def test_steps_are_reported_and_a_cancel_stops_at_the_next_one(manager: StubEngine) -> None:
    steps: list[int] = []
    work = asyncio.create_task(
        manager.generate_image(params(num_inference_steps=200), lambda step, _: steps.append(step))
    )
    while len(steps) < 3:  # noqa: ASYNC110 (another thread counts)
        await asyncio.sleep(0.001)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert len(steps) < 20
    assert (await manager.generate_image(params())).images


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ("engine.step@2=oom", OutOfMemory),
        ("engine.step@2=cuda", DeviceFault),
        ("engine.decode@1=nan", BadOutput),
        ("engine.decode@1=flat", BadOutput),
        ("engine.begin@1=error", RuntimeError),
    ],
)
async def test_a_job_fails_as_asked_and_the_next_one_does_not(
    rule: str, error: type[Exception], manager: StubEngine, tmp_path: Path
) -> None:
    faults.arm(rule, tmp_path / "faults")
    await manager.warmup([(64, 64)])  # is not a job and counts no hit
    with pytest.raises(error):
        await manager.generate_image(params(), _no_step)
    assert (await manager.generate_image(params(), _no_step)).images


class AcceleratorError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), DeviceFault),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), DeviceFault),
        (AcceleratorError("unspecified launch failure"), DeviceFault),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), OutOfMemory),
        (RuntimeError("CUDA error: out of memory"), OutOfMemory),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), OutOfMemory),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
)
def test_what_the_libraries_raise_is_told_apart(error: RuntimeError, kind: type[GenerationError] | None) -> None:
    assert type(failure_of(error, params())) is (kind or type(None))


def test_a_picture_has_numbers_and_more_than_one_colour() -> None:
    check_picture(is_finite=True, spread=0.5)
    for is_finite, spread in ((False, 0.5), (True, 0.0), (True, float("nan"))):
        if spread == spread:
            with pytest.raises(BadOutput):
                check_picture(is_finite=is_finite, spread=spread)


def test_it_needs_none_of_the_heavy_libraries() -> None:
    code = (
        "import sys, safelight.engine.worker; raise SystemExit(bool({'torch', 'numpy', 'diffusers'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
