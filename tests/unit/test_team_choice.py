"""Jobs that several workers make together: when they do, and that none is lost with one of them. Real worker processes
with the stub engine, whose steps take a share of their time in a team.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from safelight.config import STUB_MODEL, Config
from safelight.jobs import Job, JobStatus
from safelight.server import loader as loader_module
from safelight.server import team_choice as team_choice_module
from safelight.server.cluster import LocalCluster
from safelight.server.devices import Device
from safelight.server.front import Front
from safelight.server.pace import StepPaces
from safelight.server.store import JobStore
from safelight.server.worker_process import WORKER_COMMAND
from tests.unit.running_front import TIMEOUT_S, ended, job, submit, until

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def _fleet(
    folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int = 2, device: str = "cpu", **settings: Any
) -> AsyncIterator[Front]:
    monkeypatch.setenv("STUB_STEP_S", "0.02")
    monkeypatch.setattr(loader_module, "BACK_OFF_S", (0.0, 0.01))
    devices = [Device(f"{device}:{index}", "cpu", {}) for index in range(workers)]
    defaults: dict[str, Any] = {"sequence_parallel": "2", "grace_period_s": 5.0}
    config = Config(model=STUB_MODEL, data_dir=folder, **defaults | settings)
    with contextlib.closing(JobStore.open(config.data_dir)) as store:
        front = Front(config, store, cluster=LocalCluster(devices, WORKER_COMMAND))
        await front.start()
        try:
            await until(front.changes, lambda: all(worker.is_idle for worker in front.workers))
            yield front
        finally:
            await asyncio.wait_for(front.stop(), TIMEOUT_S)


async def _made(front: Front, **members: Any) -> tuple[int, ...]:
    """By which workers a job was made, that nobody waits behind."""
    done = await ended(front, await submit(front, **members))
    assert done.status is JobStatus.SUCCEEDED
    await until(front.changes, lambda: all(worker.is_idle for worker in front.workers))
    return done.workers


async def _running(front: Front, job: Job, step: int = 1) -> None:
    await until(front.changes, lambda: job.step >= step)


async def test_a_job_that_nobody_waits_behind_is_made_by_two_and_others_meanwhile_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _fleet(tmp_path, monkeypatch) as front:
        first = await submit(front, num_inference_steps=20)
        await _running(front, first)
        shown = [worker["jobs"] for worker in front.status()["workers"]]
        assert [[each["id"] for each in jobs] for jobs in shown] == [[first.id]] * 2
        assert shown[0][0]["workers"] == [0, 1]
        others = [await submit(front, seed=seed) for seed in range(4)]
        await ended(front, first)
        done = [await ended(front, other) for other in others]
        assert first.workers == (0, 1)
        assert {other.workers for other in done[:3]} == {(0,), (1,)}
        assert await _made(front) == (0, 1)
        assert b'team_jobs_total{size="2"}' in front.metrics.page()


async def test_jobs_that_come_at_once_go_to_one_worker_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with _fleet(tmp_path, monkeypatch) as front:
        jobs = await asyncio.gather(*(submit(front, seed=seed) for seed in range(6)))
        done = [await ended(front, each) for each in jobs]
        assert {each.workers for each in done[:-1]} == {(0,), (1,)}


async def test_one_that_comes_right_behind_dissolves_the_team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team_choice_module, "_LOOK_S", 3.0)
    async with _fleet(tmp_path, monkeypatch) as front:
        first = await submit(front)
        await until(front.changes, lambda: first.status is JobStatus.RUNNING)
        second = await submit(front)
        assert (await ended(front, first)).workers == (0,)
        assert (await ended(front, second)).workers == (1,)


async def test_a_cancel_stops_all_and_the_team_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with _fleet(tmp_path, monkeypatch) as front:
        long = await submit(front, num_inference_steps=200)
        await _running(front, long)
        await front.dispatcher.cancel(long)
        assert (await ended(front, long)).status is JobStatus.CANCELLED
        assert long.step < 20
        assert await _made(front) == (0, 1)
        assert [worker.loader.restarts for worker in front.workers] == [0, 0]


@pytest.mark.parametrize("dying", [0, 1])
async def test_a_job_whose_member_dies_is_made_again_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dying: int
) -> None:
    async with _fleet(tmp_path, monkeypatch) as front:
        lost = await submit(front, num_inference_steps=60)
        await _running(front, lost)
        instance = front.workers[dying].current
        assert instance is not None
        assert instance._process is not None
        instance._process.kill()
        done = await ended(front, lost)
        assert (done.status, done.attempt, len(done.workers)) == (JobStatus.SUCCEEDED, 2, 1)
        assert front.workers[1 - dying].loader.restarts == 0
        await until(front.changes, lambda: all(worker.is_idle for worker in front.workers))
        assert await _made(front) == (0, 1)


async def test_workers_that_lose_each_other_again_and_again_are_no_team_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their files cannot be made: neither fails for it, nor does the job."""
    async with _fleet(tmp_path, monkeypatch) as front:
        assert await _made(front) == (0, 1)
        for _ in range(2):
            for block in front.dispatcher._teams._blocks.values():
                block.rendezvous = tmp_path / "missing" / "file"
            lost = await submit(front)
            assert (await ended(front, lost)).status is JobStatus.SUCCEEDED
            assert (lost.attempt, len(lost.workers)) == (2, 1)
            await until(front.changes, lambda: all(worker.is_idle for worker in front.workers))
        assert await _made(front) == (0,)
        assert [worker.loader.restarts for worker in front.workers] == [0, 0]


async def test_a_job_that_fails_for_its_own_sake_says_nothing_about_the_team(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _fleet(tmp_path, monkeypatch) as front:
        for _ in range(3):
            assert (await ended(front, await submit(front, prompt="out of memory"))).status is JobStatus.FAILED
            await until(front.changes, lambda: all(worker.is_idle for worker in front.workers))
        assert await _made(front) == (0, 1)


async def test_a_folder_that_cannot_be_made_leaves_everyone_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _fleet(tmp_path, monkeypatch) as front:
        front.dispatcher._teams._folder = tmp_path / "data.sqlite" / "teams"
        (tmp_path / "data.sqlite").write_text("no folder")
        assert await _made(front) == (0,)


async def test_a_drain_takes_a_team_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with _fleet(tmp_path, monkeypatch, grace_period_s=0.1) as front:
        long = await submit(front, num_inference_steps=200)
        await _running(front, long)
        await asyncio.wait_for(front.drain(), TIMEOUT_S)
        assert long.status is JobStatus.QUEUED


async def test_it_learns_whether_a_team_is_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On what passes for CUDA devices: alone first, then together, then whichever was faster."""
    async with _fleet(tmp_path, monkeypatch, device="cuda", sequence_parallel="auto") as front:
        assert [await _made(front) for _ in range(3)] == [(0,), (0, 1), (0, 1)]
        learnt = front.dispatcher._teams._paces
        like = job(model=STUB_MODEL)
        assert (learnt.seconds(like, 1) or 0) > (learnt.seconds(like, 2) or 1)
        for _ in range(30):
            learnt.measured(like, 2, 1.0)
        assert await _made(front) == (0,)
        assert [await _made(front, width=512, height=512) for _ in range(2)] == [(0,), (0, 1)]


@pytest.mark.parametrize(
    ("workers", "device", "setting", "expected"),
    [
        (2, "cpu", "auto", (0,)),
        (2, "cuda", "off", (0,)),
        (4, "cuda", "2", (0, 1)),
        (4, "cuda", "4", (0,)),  # none would be left for the next one
    ],
)
async def test_who_is_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    device: str,
    setting: str,
    expected: tuple[int, ...],
) -> None:
    async with _fleet(tmp_path, monkeypatch, workers, device, sequence_parallel=setting) as front:
        assert [await _made(front) for _ in range(2)][-1] == expected


def test_a_pace_is_that_of_a_kind_of_job() -> None:
    paces = StepPaces()
    paces.measured(job(width=1024, height=1024), 1, 0.1)
    assert paces.seconds(job(width=1024, height=1024), 1) == pytest.approx(0.1)
    assert paces.seconds(job(width=1024, height=960), 1) == pytest.approx(0.1 * 960 / 1024)
    assert paces.seconds(job(width=512, height=512), 1) is None
    assert paces.seconds(job(width=1024, height=1024), 2) is None
    assert paces.seconds(job(width=1024, height=1024, true_cfg_scale=2.0), 1) is None
