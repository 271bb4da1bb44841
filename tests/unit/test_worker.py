"""One device over the lives of its processes: loads, fails, dies, is replaced, stops. Real children throughout."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from safelight.config import Config
from safelight.errors import CheckpointInvalid, CheckpointNotFound, LoadError, NotEnoughMemory, WorkerCrashed
from safelight.jobs import Job
from safelight.model_list import ModelEntry
from safelight.protocol import Cancelled, Failed, Generate, JobOutcome, JobProgress, StepDone, Succeeded
from safelight.server import loader as loader_module
from safelight.server.changes import Changes
from safelight.server.cluster import LocalCluster
from safelight.server.devices import Device
from safelight.server.load_history import LoadHistory
from safelight.server.loader import Loader
from safelight.server.metrics import Metrics
from safelight.server.served_model import ServedModel
from safelight.server.status import worker_status
from safelight.server.worker import Worker
from safelight.server.worker_jobs import OnProgress
from safelight.server.worker_process import WorkerProcess
from safelight.server.worker_state import WorkerState
from tests.unit.fake_worker import PHASE_SECONDS, worker_command
from tests.unit.running_front import TIMEOUT_S, job, until

pytestmark = pytest.mark.anyio

CPU = Device("cpu", "cpu", {"CUDA_VISIBLE_DEVICES": ""})


@pytest.fixture(autouse=True)
def _no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "BACK_OFF_S", (0.0, 0.01, 0.02, 0.03))


@contextlib.asynccontextmanager
async def kept_worker(
    folder: Path, checkpoint: Path, behaviour: str, **settings: Any
) -> AsyncIterator[tuple[Worker, Changes]]:
    """A worker with its ``keep`` task; stopped at the end."""
    defaults: dict[str, Any] = {"data_dir": folder, "model": str(checkpoint)}
    config = Config(**defaults | settings)
    changes = Changes()
    cluster = LocalCluster([CPU], worker_command(behaviour, folder / "marker"))
    worker = Worker(
        0, CPU, config, ServedModel(ModelEntry(model=config.model), config), changes, Metrics(dict), cluster
    )
    keeping = asyncio.create_task(worker.keep())
    try:
        yield worker, changes
    finally:
        await asyncio.wait_for(worker.stop(), TIMEOUT_S)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def _run(worker: Worker, changes: Changes, running: Job, steps: list[int] | None = None) -> JobOutcome:
    await until(changes, lambda: worker.current is not None and worker.current.admits(running))
    running.attempt += 1

    def on_progress(progress: JobProgress) -> None:
        if steps is not None and isinstance(progress, StepDone):
            steps.append(progress.step)

    return await _run_with(worker, running, on_progress)


async def _run_with(worker: Worker, running: Job, on_progress: OnProgress) -> JobOutcome:
    """From the place to the outcome, as the dispatcher does it."""
    instance = worker.current
    assert instance is not None
    instance.reserve(running)
    try:
        return await asyncio.wait_for(
            instance.run(running, Generate(running.id, running.attempt, running.params), on_progress), TIMEOUT_S
        )
    finally:
        instance.release(running)


async def test_a_worker_goes_from_starting_to_ready_and_reports_on_the_way(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    seen: list[tuple[str, int]] = []
    async with kept_worker(tmp_path, checkpoint_dir, "loads_slowly") as (worker, changes):

        def look() -> bool:
            seen.append((worker.state.value, worker.load.progress.bytes_done))
            return worker.is_idle

        await until(changes, look)
        states = list(dict.fromkeys(state for state, _ in seen))
        assert states in (["starting", "loading", "warming", "ready"], ["starting", "loading", "ready"])
        assert ("loading", 40) in seen
        assert worker.loader.has_been_ready
        assert worker.load.phase_seconds == PHASE_SECONDS
        assert worker.load.seconds >= 0.3
        assert worker.loader.restarts == 0


async def test_warming_is_a_state_of_its_own(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with kept_worker(tmp_path, checkpoint_dir, "never_finishes_warmup") as (worker, changes):
        await until(changes, lambda: worker.state is WorkerState.WARMING)
        assert not worker.is_idle
        assert not worker.loader.has_been_ready


async def test_the_worker_is_told_what_to_load_and_how(tmp_path: Path, checkpoint_dir: Path) -> None:
    settings = {"dtype": "bfloat16", "warmup_sizes": ((64, 32),), "precision": "fp8", "step_cache": 2, "batch_limit": 5}
    async with kept_worker(tmp_path, checkpoint_dir, "repeats_its_orders", **settings) as (worker, changes):
        await until(changes, lambda: worker.error)
        assert worker.error is not None
        cache = tmp_path / "compile-cache"
        assert worker.error.message == f"{checkpoint_dir}|cpu|bfloat16|64x32|fp8|2|5|{cache}||True"


async def test_compiled_kernels_are_kept_where_only_this_user_may_write(tmp_path: Path, checkpoint_dir: Path) -> None:
    cache = tmp_path / "compile-cache"
    for _ in range(2):
        async with kept_worker(tmp_path, checkpoint_dir, "is_ready") as (worker, changes):
            await until(changes, lambda: worker.is_idle)
        assert stat.S_IMODE(cache.stat().st_mode) == 0o700
        cache.chmod(0o777)
        (cache / "kernel").touch()


async def test_without_a_place_for_compiled_kernels_a_worker_serves_all_the_same(
    tmp_path: Path, checkpoint_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "compile-cache").touch()
    async with kept_worker(tmp_path, checkpoint_dir, "is_ready") as (worker, changes):
        await until(changes, lambda: worker.is_idle)
    assert "compiled kernels are not kept" in caplog.text


async def test_the_time_of_a_load_is_the_eta_of_the_next(tmp_path: Path, checkpoint_dir: Path) -> None:
    history = LoadHistory(tmp_path)
    history.record(str(checkpoint_dir), "cpu", 1000.0)
    async with kept_worker(tmp_path, checkpoint_dir, "loads_slowly") as (worker, changes):
        await until(changes, lambda: worker.state is WorkerState.LOADING)
        assert worker.load.eta_s == pytest.approx(1000, abs=10)
        await until(changes, lambda: worker.is_idle)
    for _ in range(100):
        history = LoadHistory(tmp_path)
        history.read()
        if (seconds := history.seconds(str(checkpoint_dir), "cpu")) != 1000.0:
            break
        await asyncio.sleep(0.01)
    assert seconds is not None and 0.3 <= seconds < 100


async def test_the_log_has_one_line_with_the_time_of_each_phase(
    tmp_path: Path, checkpoint_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        async with kept_worker(tmp_path, checkpoint_dir, "is_ready") as (worker, changes):
            await until(changes, lambda: worker.is_idle)
    lines = [line for line in caplog.messages if "ready on cpu" in line]
    assert len(lines) == 1
    assert lines[0].endswith("import 0.10 s, weights 0.20 s, to_device 0.30 s, warmup 0.40 s")


# --- failed loads -------------------------------------------------------------------------------------------------


async def test_a_failed_load_keeps_the_workers_error_and_waits(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with kept_worker(tmp_path, checkpoint_dir, "fails_to_load") as (worker, changes):
        await until(changes, lambda: worker.state is WorkerState.FAILED)
        assert isinstance(worker.error, CheckpointInvalid)
        assert worker.error.message == "vae/config.json is missing"
        assert list(worker.loader.errors.values()) == [worker.error]
        assert worker.loader.restarts == 0
        assert not psutil.Process().children()


async def test_an_unknown_reason_is_still_a_failed_load_with_its_sentence(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with kept_worker(tmp_path, checkpoint_dir, "fails_to_load_for_a_strange_reason") as (worker, changes):
        await until(changes, lambda: worker.state is WorkerState.FAILED)
        assert type(worker.error) is LoadError
        assert worker.error.message == "there is no cheese"


async def test_a_model_that_is_not_there_fails_without_a_process(tmp_path: Path) -> None:
    async with kept_worker(tmp_path, tmp_path / "nowhere", "is_ready") as (worker, changes):
        await until(changes, lambda: worker.state is WorkerState.FAILED)
        assert isinstance(worker.error, CheckpointNotFound)
        assert not psutil.Process().children()


async def test_a_process_that_cannot_be_started_is_a_failed_load(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_memory(*arguments: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", no_memory)
    async with kept_worker(tmp_path, checkpoint_dir, "is_ready") as (worker, changes):
        model = worker.wanted
        await until(changes, lambda: worker.state is WorkerState.FAILED)
        assert worker.error is not None
        assert "no worker could be started" in worker.error.message
        monkeypatch.undo()
        worker.want(model)
        await until(changes, lambda: worker.is_idle)


async def test_a_retry_after_a_failed_load_shows_at_once_and_loads(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with kept_worker(tmp_path, checkpoint_dir, "fails_to_load_once") as (worker, changes):
        model = worker.wanted
        await until(changes, lambda: worker.state is WorkerState.FAILED)
        assert isinstance(worker.error, NotEnoughMemory)
        worker.want(model)
        assert worker_status(worker)["state"] == "starting"
        assert worker_status(worker)["error"] is None
        assert worker_status(worker)["bytes_done"] == 0
        assert worker.loader.errors == {}
        await until(changes, lambda: worker.is_idle)


# --- deaths -------------------------------------------------------------------------------------------------------


async def test_a_worker_that_dies_while_loading_is_replaced(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with kept_worker(tmp_path, checkpoint_dir, "dies_while_loading_once") as (worker, changes):
        await until(changes, lambda: worker.is_idle)
        assert worker.loader.restarts == 1


async def test_a_worker_that_always_dies_while_loading_backs_off_longer_each_time(
    tmp_path: Path, checkpoint_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[float] = []
    monkeypatch.setattr(loader_module, "BACK_OFF_S", (0.0, 0.01, 0.011, 0.012))
    back_off_s = Loader.back_off_s

    def noted(self: Loader) -> float:
        delays.append(back_off_s(self))
        return delays[-1]

    monkeypatch.setattr(Loader, "back_off_s", noted)
    async with kept_worker(tmp_path, checkpoint_dir, "dies_while_loading") as (worker, changes):
        await until(changes, lambda: worker.loader.restarts == 4)
        assert worker.state is WorkerState.RESTARTING
        assert worker.loader.errors == {}
    assert delays[:4] == [0.0, 0.01, 0.011, 0.012]


async def test_a_worker_that_dies_in_a_job_fails_it_and_is_replaced(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with kept_worker(tmp_path, checkpoint_dir, "dies_in_the_first_job") as (worker, changes):
        steps: list[int] = []
        with pytest.raises(WorkerCrashed, match="exit code 7"):
            await _run(worker, changes, job(), steps)
        assert steps == [1]
        assert worker.jobs == []
        assert not worker.is_idle
        outcome = await _run(worker, changes, job("job_2"))
        assert isinstance(outcome, Succeeded)
        assert worker.loader.restarts == 1


@pytest.mark.parametrize("behaviour", ["writes_garbage", "writes_broken_text", "announces_four_gigabytes"])
async def test_a_worker_that_writes_nonsense_is_replaced_and_its_job_fails(
    behaviour: str, tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with kept_worker(tmp_path, checkpoint_dir, behaviour) as (worker, changes):
        for name in ("job_1", "job_2"):
            with pytest.raises(WorkerCrashed):
                await _run(worker, changes, job(name))
        await until(changes, lambda: worker.is_idle)
        assert worker.loader.restarts == 2


async def test_an_idle_worker_that_is_killed_is_replaced(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with kept_worker(tmp_path, checkpoint_dir, "is_ready") as (worker, changes):
        await until(changes, lambda: worker.is_idle)
        psutil.Process().children()[0].kill()
        await until(changes, lambda: not worker.is_idle)
        await until(changes, lambda: worker.is_idle)
        assert worker.loader.restarts == 1


async def test_a_worker_that_is_about_to_end_is_not_idle(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the socket comes first, the end of the process may take its time."""
    async with kept_worker(tmp_path, checkpoint_dir, "closes_its_socket_in_the_first_job") as (worker, changes):
        await until(changes, lambda: worker.is_idle)
        stop = WorkerProcess.stop
        may_end = asyncio.Event()

        async def slow_stop(process: WorkerProcess, *, politely: bool) -> int:
            await may_end.wait()
            return await stop(process, politely=politely)

        monkeypatch.setattr(WorkerProcess, "stop", slow_stop)
        running = asyncio.create_task(_run(worker, changes, job()))
        await until(changes, lambda: worker.state is WorkerState.RESTARTING)
        assert not worker.is_idle
        may_end.set()
        with pytest.raises(WorkerCrashed):
            await running
        assert isinstance(await _run(worker, changes, job("job_2")), Succeeded)


# --- jobs ---------------------------------------------------------------------------------------------------------


async def test_a_job_runs_step_by_step_to_its_pictures(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with kept_worker(tmp_path, checkpoint_dir, "is_ready") as (worker, changes):
        steps: list[int] = []
        outcome = await _run(worker, changes, job(seed=7, num_images=2), steps)
        assert isinstance(outcome, Succeeded)
        assert [image.data for image in outcome.images] == [b"a red circle 7", b"a red circle 8"]
        assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
        assert worker.is_idle


async def test_a_job_that_fails_leaves_the_worker_ready(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with kept_worker(tmp_path, checkpoint_dir, "fails_the_job") as (worker, changes):
        outcome = await _run(worker, changes, job())
        assert outcome == Failed("job_1", 1, "out_of_memory", "64x64 is too large for cuda:0")
        assert worker.is_idle
        assert worker.loader.restarts == 0


async def test_a_cancelled_job_stops_before_its_last_step(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with kept_worker(tmp_path, checkpoint_dir, "has_slow_steps") as (worker, changes):
        running = job(num_inference_steps=200)
        steps: list[int] = []

        def on_progress(progress: JobProgress) -> None:
            assert isinstance(progress, StepDone)
            steps.append(progress.step)
            worker.cancel(running)

        await until(changes, lambda: worker.is_idle)
        assert isinstance(await _run_with(worker, running, on_progress), Cancelled)
        assert len(steps) <= 2
        assert worker.is_idle


async def test_cancelling_another_job_does_not_touch_the_running_one(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with kept_worker(tmp_path, checkpoint_dir, "has_slow_steps") as (worker, changes):
        running = asyncio.create_task(_run(worker, changes, job()))
        await until(changes, lambda: worker.state is WorkerState.BUSY)
        worker.cancel(job("job_2"))
        assert isinstance(await running, Succeeded)


async def test_messages_of_another_job_or_attempt_are_ignored(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with kept_worker(tmp_path, checkpoint_dir, "answers_for_an_earlier_attempt") as (worker, changes):
        steps: list[int] = []
        outcome = await _run(worker, changes, job(), steps)
        assert isinstance(outcome, Succeeded)
        assert outcome.images[0].data == b"the right picture"
        assert steps == []


# --- stop ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", ["never_finishes_loading", "fails_to_load", "is_ready", "dies_while_loading"])
async def test_stop_leaves_no_process_and_ends_keep(behaviour: str, tmp_path: Path, checkpoint_dir: Path) -> None:
    async with kept_worker(tmp_path, checkpoint_dir, behaviour) as (worker, changes):
        early = (WorkerState.STARTING,)
        await until(changes, lambda: worker.state not in early)
        await worker.stop()
        assert worker.state is WorkerState.DRAINING
    assert not psutil.Process().children()
    assert worker.state is WorkerState.DRAINING


async def test_a_loaded_worker_ends_politely(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with kept_worker(tmp_path, checkpoint_dir, "is_ready") as (worker, changes):
        await until(changes, lambda: worker.is_idle)
        await worker.stop()
    assert (tmp_path / "marker").exists()
