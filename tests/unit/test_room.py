"""A picture that is too large for the memory beside the model is refused with figures, or goes where there is room."""

from __future__ import annotations

from pathlib import Path

import pytest

from safelight.engine.batch import Batch
from safelight.engine.drawing_job import DrawingJob
from safelight.engine.memory_plan import MemoryMode, MemoryPlan
from safelight.engine.options import NumberFormat
from safelight.engine.stub import StubModel
from safelight.engine.working_memory import check_fits, fitted
from safelight.errors import InvalidSize, OutOfMemory
from safelight.jobs import JobStatus
from safelight.protocol import Fit
from tests.unit.running_front import (
    ended,
    params,
    pictures,
    running_front,
    serving,
    serving_instance,
    submit,
    until,
    until_ready,
)

pytestmark = pytest.mark.anyio


async def test_too_large_a_picture_is_refused_before_it_waits(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "is_small", model=str(checkpoint_dir)) as front, serving(front) as client:
        await until_ready(front)
        asked = {"prompt": "a circle", "size": "128x64"}
        answer = await client.post("/v1/images/generations", json=asked)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_size")
        assert answer.json()["error"]["message"].startswith(
            "a step of this picture has 0.01 megapixels and takes about 0.01 GB; beside the model cpu has room for 0.00"
        )
        with pytest.raises(InvalidSize):  # both rows of true CFG are in one step
            await submit(front, true_cfg_scale=2.0)
        done = await ended(front, await submit(front, num_images=4))  # one by one, if it must be
        assert pictures(front, done) == [b"first"] * 4
        (worker,) = (await client.get("/v1/status")).json()["workers"]
        assert worker["fit"] == {
            "mode": "low",
            "number_format": "bfloat16",
            "planned_bytes": 20_600_000_000,
            "max_pixels": 64 * 64,
            "working_bytes_per_pixel": 1000,
            "note": "",
        }


async def test_of_two_devices_the_one_with_room_is_taken(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "is_small", model=str(checkpoint_dir), device="cuda:0,1") as front:
        await until(front.changes, lambda: all(worker.is_serving for worker in front.workers))
        for _ in range(2):
            done = await ended(front, await submit(front, width=128, height=128))
            assert pictures(front, done) == [b"second"]
        with pytest.raises(InvalidSize, match=r"cuda:1 has room for 0\.02 megapixels"):
            await submit(front, width=192, height=128)


async def test_while_the_model_loads_a_picture_of_any_size_may_wait(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "is_small", model=str(checkpoint_dir)) as front:
        assert pictures(front, await ended(front, await submit(front, width=128))) == [b"first"]


def test_the_worker_refuses_it_too() -> None:
    fit = Fit("full", "bfloat16", 0, 64 * 64, 1000.0)
    check_fits(params(num_images=4), fit, "cuda:0")
    check_fits(params(width=1024), None, "cuda:0")
    check_fits(params(width=1024), Fit("full", "bfloat16", 0), "cuda:0")
    with pytest.raises(OutOfMemory, match="ask for a smaller size"):
        check_fits(params(width=128), fit, "cuda:0")


def test_pictures_of_a_job_make_as_many_steps_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_STEP_S", "0")
    model = StubModel()
    batch = Batch(model)
    batch.max_tokens = 16 * model.tokens(params())
    batch.max_pixels = 2 * 64 * 64 + 1
    job = DrawingJob(params(num_images=5, num_inference_steps=2))
    batch.join(job)
    while not job.is_over:
        batch.advance()
    assert len(job.outcome.result().images) == 5
    assert sorted(len(group) for group in model.steps) == [1, 1, 2, 2, 2, 2]


def test_on_a_cpu_a_limit_makes_room_for_so_many_pixels() -> None:
    plan = MemoryPlan(MemoryMode.FULL, NumberFormat("float32"), 100_000_000, 0)
    assert fitted(plan, None, "cpu", 0).max_pixels == 0
    assert fitted(plan, None, "cpu", 400_000_000) == Fit("full", "float32", 100_000_000, 90_000, 3000)
    assert fitted(plan, 1500.0, "cpu", 400_000_000).max_pixels == 180_000
    assert fitted(plan, None, "cpu", 50_000_000).max_pixels == 1, "0 would mean that nobody knows"


async def test_a_model_in_a_slower_mode_than_it_could_be_is_loaded_again_when_asked(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with (
        running_front(tmp_path, "is_slow_at_first", model=str(checkpoint_dir)) as front,
        serving(front) as client,
    ):
        await until_ready(front)
        first = serving_instance(front)
        path = f"/v1/models/{front.models.default.id}/load"
        assert (await client.get("/v1/status")).json()["workers"][0]["fit"]["note"] == "it is in mode low"
        assert (await client.post(path)).status_code == 202
        done = await ended(front, await submit(front))  # whichever of the two makes it
        assert done.status is JobStatus.SUCCEEDED
        (worker,) = front.workers
        await until(front.changes, lambda: worker.is_serving and worker.current is not first)
        second = serving_instance(front)
        assert second.load.fit is not None and second.load.fit.mode == "full"
        assert (await client.post(path)).status_code == 202
        await ended(front, await submit(front))
        assert serving_instance(front) is second, "there is nothing to gain any more"
        assert worker.loader.restarts == 0
