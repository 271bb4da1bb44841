"""Jobs from submit to their end, over real fake workers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from safelight.errors import (
    JobCancelled,
    LoadError,
    OutOfMemory,
    QueueFull,
    SafelightError,
    ShuttingDown,
    WorkerCrashed,
)
from safelight.jobs import Job, JobStatus
from safelight.protocol import Succeeded
from safelight.server import dispatcher as dispatcher_module
from safelight.server import worker as worker_module
from safelight.server.front import Front
from safelight.server.worker import WorkerState
from safelight.server.worker_process import WorkerProcess
from tests.unit.running_front import TIMEOUT_S, params, running_front, until, until_ready

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_BACK_OFF_S", (0.0, 0.01))
    monkeypatch.setattr(dispatcher_module, "_CANCEL_GRACE_S", 2.0)


async def _result(front: Front, waited: Job) -> Succeeded:
    return await asyncio.wait_for(front.dispatcher.result(waited), TIMEOUT_S)


async def _error(future: asyncio.Future[Succeeded]) -> BaseException | None:
    await asyncio.wait({future}, timeout=TIMEOUT_S)
    return future.exception()


async def test_jobs_submitted_while_the_model_loads_are_done_in_order_when_it_is_ready(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, "loads_slowly", model=str(checkpoint_dir)) as front:
        jobs = [front.dispatcher.submit(params(prompt=f"picture {number}")) for number in range(3)]
        results = [front.dispatcher.result(waited) for waited in jobs]
        assert (len(front.queue), front.dispatcher.running_count) == (3, 0)
        done = [result.result().images[0].data for result in results if await asyncio.wait_for(result, TIMEOUT_S)]
        assert done == [b"picture 0 1", b"picture 1 1", b"picture 2 1"]
        assert [waited.status for waited in jobs] == [JobStatus.SUCCEEDED] * 3
        assert [waited.step for waited in jobs] == [4, 4, 4]


async def test_two_devices_work_at_the_same_time(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "never_finishes_a_step", model=str(checkpoint_dir), device="cuda:0,1") as front:
        for _ in range(3):
            front.dispatcher.submit(params())
        await until(front.changes, lambda: front.dispatcher.running_count == 2)
        assert len(front.queue) == 1


async def test_a_full_queue_refuses_with_a_retry_after_between_1_and_60(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "never_finishes_loading", model=str(checkpoint_dir), queue_limit=2) as front:
        jobs = [front.dispatcher.submit(params()) for _ in range(2)]
        with pytest.raises(QueueFull) as caught:
            front.dispatcher.submit(params())
        assert caught.value.retry_after_s is not None
        assert 1 <= caught.value.retry_after_s <= 60
        assert len(front.queue) == 2
        assert all(waited.status is JobStatus.QUEUED for waited in jobs)


async def test_a_waiting_job_is_cancelled_at_once_and_never_runs(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "never_finishes_loading", model=str(checkpoint_dir)) as front:
        waited = front.dispatcher.submit(params())
        result = front.dispatcher.result(waited)
        front.dispatcher.cancel(waited)
        assert waited.status is JobStatus.CANCELLED
        assert len(front.queue) == 0
        assert isinstance(result.exception(), JobCancelled)
        front.dispatcher.cancel(waited)


async def test_a_running_job_is_cancelled_at_its_next_step(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "has_slow_steps", model=str(checkpoint_dir)) as front:
        running = front.dispatcher.submit(params(num_inference_steps=200))
        result = front.dispatcher.result(running)
        await until(front.changes, lambda: running.step >= 2)
        front.dispatcher.cancel(running)
        error = await _error(result)
        assert isinstance(error, JobCancelled)
        assert error.message == f"the job was cancelled after step {running.step}"
        assert running.status is JobStatus.CANCELLED
        assert running.step <= 5
        assert (await _result(front, front.dispatcher.submit(params()))).images


async def test_cancelling_a_finished_job_does_nothing(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front:
        finished = front.dispatcher.submit(params())
        await _result(front, finished)
        front.dispatcher.cancel(finished)
        assert finished.status is JobStatus.SUCCEEDED


async def test_a_job_that_the_engine_fails_ends_with_the_engines_error(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "fails_the_job", model=str(checkpoint_dir)) as front:
        failing = front.dispatcher.submit(params())
        error = await _error(front.dispatcher.result(failing))
        assert isinstance(error, OutOfMemory)
        assert error.message == "64x64 is too large for cuda:0"
        assert failing.status is JobStatus.FAILED


async def test_a_job_whose_worker_dies_fails_and_the_next_one_succeeds(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "dies_in_the_first_job", model=str(checkpoint_dir)) as front:
        first, second = front.dispatcher.submit(params()), front.dispatcher.submit(params())
        results = [front.dispatcher.result(first), front.dispatcher.result(second)]
        assert isinstance(await _error(results[0]), WorkerCrashed)
        assert (await asyncio.wait_for(results[1], TIMEOUT_S)).images
        assert (first.status, second.status) == (JobStatus.FAILED, JobStatus.SUCCEEDED)


async def test_a_job_submitted_the_moment_a_worker_dies_is_done_by_its_successor(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_front(tmp_path, "closes_its_socket_in_the_first_job", model=str(checkpoint_dir)) as front:
        await until_ready(front)
        stop = WorkerProcess.stop
        submitted: list[Job] = []

        async def stop_and_submit(process: WorkerProcess, *, politely: bool) -> int:
            submitted.append(front.dispatcher.submit(params(prompt="second")))
            results.append(front.dispatcher.result(submitted[-1]))
            await asyncio.sleep(0.05)  # long enough for a wrong hand-over
            monkeypatch.undo()
            return await stop(process, politely=politely)

        results: list[asyncio.Future[Succeeded]] = []
        monkeypatch.setattr(WorkerProcess, "stop", stop_and_submit)
        first = front.dispatcher.submit(params())
        assert isinstance(await _error(front.dispatcher.result(first)), WorkerCrashed)
        assert (await asyncio.wait_for(results[0], TIMEOUT_S)).images[0].data == b"second 1"


async def test_when_the_load_fails_everybody_who_waits_is_told_and_nobody_is_admitted(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, "fails_to_load", model=str(checkpoint_dir)) as front:
        results = [front.dispatcher.result(front.dispatcher.submit(params())) for _ in range(2)]
        errors = [await _error(result) for result in results]
        assert all(isinstance(error, LoadError) and "vae/config.json" in error.message for error in errors)
        with pytest.raises(LoadError, match=r"vae/config\.json"):
            front.dispatcher.submit(params())
        assert len(front.queue) == 0


async def test_after_a_retry_jobs_are_admitted_again(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "fails_to_load_once", model=str(checkpoint_dir)) as front:
        await until(front.changes, lambda: front.workers[0].state is WorkerState.FAILED)
        front.load(str(checkpoint_dir))
        assert (await _result(front, front.dispatcher.submit(params()))).images


# --- drain --------------------------------------------------------------------------------------------------------


async def test_a_draining_server_answers_who_waits_and_finishes_what_runs(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "has_slow_steps", model=str(checkpoint_dir)) as front:
        running, waiting = front.dispatcher.submit(params()), front.dispatcher.submit(params())
        results = [front.dispatcher.result(running), front.dispatcher.result(waiting)]
        await until(front.changes, lambda: running.step >= 1)
        draining = asyncio.create_task(front.drain())
        assert isinstance(await _error(results[1]), ShuttingDown)
        with pytest.raises(ShuttingDown) as caught:
            front.dispatcher.submit(params())
        assert caught.value.retry_after_s
        assert (await asyncio.wait_for(results[0], TIMEOUT_S)).images
        await draining
        assert (running.status, waiting.status) == (JobStatus.SUCCEEDED, JobStatus.FAILED)


async def test_what_runs_longer_than_the_grace_period_is_cancelled_with_the_reason(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, "has_slow_steps", model=str(checkpoint_dir), grace_period_s=0.1) as front:
        running = front.dispatcher.submit(params(num_inference_steps=200))
        result = front.dispatcher.result(running)
        await until(front.changes, lambda: running.step >= 1)
        await front.drain()
        error = await _error(result)
        assert isinstance(error, ShuttingDown)
        assert running.status is JobStatus.CANCELLED


async def test_a_worker_that_does_not_even_cancel_is_ended_and_its_client_answered(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "_CANCEL_GRACE_S", 0.05)
    async with running_front(
        tmp_path, "never_finishes_a_step", model=str(checkpoint_dir), grace_period_s=0.05
    ) as front:
        stuck = front.dispatcher.submit(params())
        result = front.dispatcher.result(stuck)
        await until(front.changes, lambda: stuck.step == 1)
        await asyncio.wait_for(front.drain(), TIMEOUT_S)
        assert isinstance(await _error(result), SafelightError)


async def test_draining_an_idle_server_is_immediate(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir), grace_period_s=600.0) as front:
        await until_ready(front)
        await asyncio.wait_for(front.drain(), TIMEOUT_S)
