"""Jobs that share a worker: who joins, who waits, and what happens to the others when one goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from safelight.jobs import Job, JobStatus
from safelight.protocol import Drawn, StepDone
from safelight.server import attempt as attempt_module
from safelight.server import ledger as ledger_module
from safelight.server import loader as loader_module
from safelight.server.attempt import Attempt
from safelight.server.front import Front
from safelight.server.model_instance import ModelInstance
from safelight.server.status import worker_status
from safelight.server.team import Team
from safelight.server.worker import Worker
from safelight.server.worker_state import WorkerState
from tests.unit.fake_worker import BATCH_TOKENS
from tests.unit.running_front import (
    TIMEOUT_S,
    ended,
    job,
    make_front,
    pictures,
    running_front,
    serving,
    serving_instance,
    submit,
    until,
    until_ready,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "BACK_OFF_S", (0.0, 0.01))


class Told:
    """A front whose workers do with each job, named by its prompt, what ``tell`` says."""

    def __init__(self, front: Front, folder: Path) -> None:
        self.front = front
        self._folder = folder

    @property
    def worker(self) -> Worker:
        return self.front.workers[0]

    @property
    def instance(self) -> ModelInstance:
        return serving_instance(self.front)

    async def submit(self, *names: str, **members: Any) -> list[Job]:
        return [await submit(self.front, prompt=name, **members) for name in names]

    def tell(self, *files: str) -> None:
        for file in files:
            (self._folder / file).touch()

    def finish(self, *names: str) -> None:
        self.tell(*(f"{name}.{what}" for name in names for what in ("draw", "end")))

    async def until_run(self, *jobs: Job) -> None:
        """Each has made its first step, and no more."""
        await until(self.front.changes, lambda: all(job.step == 1 for job in jobs))

    async def until_drawn(self, drawn: Job) -> None:
        await until(self.front.changes, lambda: drawn.step == 4 and drawn not in self.worker.jobs_on_device)

    async def results(self, *jobs: Job) -> list[list[bytes]]:
        return [pictures(self.front, await ended(self.front, job)) for job in jobs]


@contextlib.asynccontextmanager
async def told_front(folder: Path, checkpoint: Path, **settings: Any) -> AsyncIterator[Told]:
    async with running_front(folder, "waits_to_be_told", model=str(checkpoint), **settings) as front:
        await until(front.changes, lambda: all(worker.is_idle for worker in front.workers))
        yield Told(front, folder)


# --- who joins ----------------------------------------------------------------------------------------------------


async def test_two_jobs_of_one_shape_run_at_once_and_each_gets_its_own_outcome(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with told_front(tmp_path, checkpoint_dir) as told:
        a, b = await told.submit("a", "b")
        await told.until_run(a, b)
        assert told.worker.jobs == [a, b]
        told.finish("b")
        assert await told.results(b) == [[b"b 1"]]
        assert (a.status, told.worker.state) == (JobStatus.RUNNING, WorkerState.BUSY)
        told.finish("a")
        assert await told.results(a) == [[b"a 1"]]
        await until(told.front.changes, lambda: told.worker.is_idle)


async def test_a_third_that_is_too_much_waits_until_one_is_drawn(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with told_front(tmp_path, checkpoint_dir) as told:
        a, b, c = await told.submit("a", "b", "c")
        await told.until_run(a, b)
        assert (told.front.queue.head(told.front.model.name), told.instance.admits(c)) == (c, False)
        told.tell("b.draw")
        await told.until_run(c)
        assert told.worker.jobs == [a, b, c]
        told.finish("a", "b", "c")
        assert await told.results(a, b, c) == [[b"a 1"], [b"b 1"], [b"c 1"]]


async def test_another_shape_waits_until_all_are_drawn(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with told_front(tmp_path, checkpoint_dir) as told:
        a, b = await told.submit("a", "b")
        (wide,) = await told.submit("wide", width=128)
        await told.until_run(a, b)
        told.tell("a.draw")
        await told.until_drawn(a)
        assert (told.front.queue.head(told.front.model.name), told.instance.admits(wide)) == (wide, False)
        told.tell("b.draw")
        await told.until_run(wide)
        assert {a.status, b.status} == {JobStatus.RUNNING}
        told.finish("a", "b", "wide")
        assert await told.results(a, b, wide) == [[b"a 1"], [b"b 1"], [b"wide 1"]]


async def test_a_job_behind_a_head_that_does_not_fit_does_not_overtake_it(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with told_front(tmp_path, checkpoint_dir) as told:
        (a,) = await told.submit("a")
        (wide,) = await told.submit("wide", width=128)
        (b,) = await told.submit("b")
        await told.until_run(a)
        assert (told.instance.admits(wide), told.instance.admits(b)) == (False, True)
        assert (told.front.queue.head(told.front.model.name), b.status) == (wide, JobStatus.QUEUED)
        told.finish("a")
        await told.until_run(wide)
        assert (told.front.queue.head(told.front.model.name), b.status) == (b, JobStatus.QUEUED)
        told.finish("wide", "b")
        assert await told.results(b) == [[b"b 1"]]


async def test_after_it_was_drawn_the_next_job_begins_before_the_first_has_its_outcome(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with told_front(tmp_path, checkpoint_dir) as told:
        large, next_one = await told.submit("large", "next one", num_images=2)
        await told.until_run(large)
        assert next_one.status is JobStatus.QUEUED
        told.tell("large.draw")
        await told.until_run(next_one)
        assert large.status is JobStatus.RUNNING
        told.finish("large", "next one")
        assert await told.results(next_one, large) == [[b"next one 1", b"next one 2"], [b"large 1", b"large 2"]]


async def test_an_idle_worker_is_better_than_joining(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with told_front(tmp_path, checkpoint_dir, device="cuda:0,1") as told:
        jobs = await told.submit("a", "b", "c", "d")
        await told.until_run(*jobs)
        assert [worker.jobs for worker in told.front.workers] == [[jobs[0], jobs[2]], [jobs[1], jobs[3]]]
        told.tell("b.draw")
        await until(told.front.changes, lambda: told.front.workers[1].jobs_on_device == [jobs[3]])
        told.tell("d.draw")
        await until(told.front.changes, lambda: told.front.workers[1].jobs_on_device == [])
        (late,) = await told.submit("late")
        await told.until_run(late)
        assert late in told.front.workers[1].jobs


async def test_a_job_whose_claim_fails_gives_its_place_back(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with told_front(tmp_path, checkpoint_dir) as told:
        claim, failed = told.front.ledger.claim, asyncio.Event()

        async def fail_once(claimed: Job) -> bool:
            assert told.worker.jobs == [claimed]  # before the disk is asked
            monkeypatch.setattr(told.front.ledger, "claim", claim)
            told.front.queue.put_back(claimed)
            failed.set()
            return False

        monkeypatch.setattr(told.front.ledger, "claim", fail_once)
        (a,) = await told.submit("a")
        await asyncio.wait_for(failed.wait(), TIMEOUT_S)
        await told.until_run(a)
        assert (told.worker.jobs, a.attempt) == ([a], 1)


async def test_while_results_wait_for_the_disk_nothing_new_begins(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with told_front(tmp_path, checkpoint_dir) as told:
        write, is_full = told.front.store.results.write, True

        def write_or_not(name: str, data: bytes) -> None:
            if is_full:
                raise OSError(28, "No space left on device")
            write(name, data)

        monkeypatch.setattr(ledger_module, "_STORAGE_PAUSE_S", 0.01)
        monkeypatch.setattr(told.front.store.results, "write", write_or_not)
        told.finish("a", "b")
        (a,) = await told.submit("a")
        for _ in range(1000):
            if told.front.ledger.is_stuck:
                break
            await asyncio.sleep(0.01)
        (b,) = await told.submit("b")
        await asyncio.sleep(0.05)  # several tries
        assert (told.worker.is_idle, a.status, b.status) == (True, JobStatus.RUNNING, JobStatus.QUEUED)
        is_full = False
        assert await told.results(a, b) == [[b"a 1"], [b"b 1"]]


# --- who goes -----------------------------------------------------------------------------------------------------


async def test_when_a_worker_dies_with_two_jobs_both_run_again_each_alone(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with told_front(tmp_path, checkpoint_dir) as told:
        jobs = await told.submit("a", "b")
        await told.until_run(*jobs)
        told.tell("die")
        await until(told.front.changes, lambda: told.worker.loader.restarts == 1)
        (tmp_path / "die").unlink()
        (fresh,) = await told.submit("fresh")
        first, second = jobs
        await until(told.front.changes, lambda: first.attempt == 2 and first.step == 1)
        assert (told.worker.jobs, second.status) == ([first], JobStatus.QUEUED)
        told.tell(f"{first.params.prompt}.draw")
        await told.until_drawn(first)
        assert not told.instance.admits(second) and not told.instance.admits(fresh)
        told.finish(first.params.prompt)
        await told.until_run(second)
        assert (told.worker.jobs, told.instance.admits(fresh)) == ([second], False)
        told.finish("a", "b", "fresh")
        assert await told.results(*jobs, fresh) == [[b"a 1"], [b"b 1"], [b"fresh 1"]]
        assert [(one.attempt, one.crashes) for one in (*jobs, fresh)] == [(2, 1), (2, 1), (1, 0)]
        assert told.worker.loader.restarts == 1


async def test_a_hang_of_both_is_found_and_neither_is_lost(
    tmp_path: Path, checkpoint_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with told_front(tmp_path, checkpoint_dir, hang_timeout_s=0.3) as told:
        told.instance._watchdog.warmed_up(0.0)
        a, b = await told.submit("a", "b")
        await told.until_run(a, b)
        told.tell("hang")
        await until(told.front.changes, lambda: told.worker.loader.restarts == 1)
        (tmp_path / "hang").unlink()
        told.finish("a", "b")
        assert await told.results(a, b) == [[b"a 1"], [b"b 1"]]
        assert [(one.attempt, one.crashes) for one in (a, b)] == [(2, 1), (2, 1)]
        assert f"made no step of {a.id}, {b.id} for 0 s" in caplog.text


async def test_cancelling_one_leaves_the_other_running(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with told_front(tmp_path, checkpoint_dir) as told:
        a, b = await told.submit("a", "b")
        await told.until_run(a, b)
        await told.front.dispatcher.cancel(a)
        assert (await ended(told.front, a)).status is JobStatus.CANCELLED
        assert (told.worker.jobs, b.status) == ([b], JobStatus.RUNNING)
        told.finish("b")
        assert await told.results(b) == [[b"b 1"]]


async def test_a_job_cancelled_while_its_source_is_read_never_begins(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with told_front(tmp_path, checkpoint_dir) as told:

        async def cancel_meanwhile(read: Job) -> list[bytes]:
            await told.front.dispatcher.cancel(read)
            return []

        monkeypatch.setattr(told.front.ledger, "source_files", cancel_meanwhile)
        (a,) = await told.submit("a")
        assert ((await ended(told.front, a)).status, a.step) == (JobStatus.CANCELLED, 0)
        await until(told.front.changes, lambda: told.worker.is_idle)


async def test_a_job_whose_worker_ended_before_it_began_is_not_to_blame(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with told_front(tmp_path, checkpoint_dir) as told:
        source_files = told.front.ledger.source_files

        async def lose_the_worker(read: Job) -> list[bytes]:
            monkeypatch.setattr(told.front.ledger, "source_files", source_files)
            assert told.instance._process is not None
            told.instance._process.kill()
            await until(told.front.changes, lambda: told.worker.loader.restarts == 1 and told.worker.is_serving)
            return []

        monkeypatch.setattr(told.front.ledger, "source_files", lose_the_worker)
        (a,) = await told.submit("a")
        told.finish("a")
        assert await told.results(a) == [[b"a 1"]]
        assert (a.attempt, a.crashes) == (2, 0)


# --- drain --------------------------------------------------------------------------------------------------------


async def test_a_drain_sees_both_to_their_end(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with told_front(tmp_path, checkpoint_dir) as told:
        jobs = await told.submit("a", "b", "c")
        await told.until_run(*jobs[:2])
        draining = asyncio.create_task(told.front.drain())
        told.finish("a", "b")
        await asyncio.wait_for(draining, TIMEOUT_S)
        assert [one.status for one in jobs] == ["succeeded", "succeeded", "queued"]


async def test_after_the_grace_period_both_wait_again(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with told_front(tmp_path, checkpoint_dir, grace_period_s=0.1) as told:
        jobs = await told.submit("a", "b")
        await told.until_run(*jobs)
        await asyncio.wait_for(told.front.drain(), TIMEOUT_S)
        stored = [told.front.store._database.get(one.id) for one in jobs]
        assert [one and (one.status, one.crashes) for one in stored] == [(JobStatus.QUEUED, 0)] * 2


# --- what is told -------------------------------------------------------------------------------------------------


async def test_the_status_shows_all_jobs_and_what_the_process_has_learnt(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with told_front(tmp_path, checkpoint_dir) as told, serving(told.front) as client:
        a, b = await told.submit("a", "b")
        await told.until_run(a, b)
        await until(told.front.changes, lambda: told.worker.load.warm)
        (entry,) = (await client.get("/readyz")).json()["workers"]
        assert entry["job"]["id"] == a.id
        assert [shown["id"] for shown in entry["jobs"]] == [a.id, b.id]
        assert (entry["batch_tokens"], entry["warm"]) == (BATCH_TOKENS, {"64x64": [1]})
        told.tell("die")
        await until(told.front.changes, lambda: told.worker.loader.restarts == 1)
        (tmp_path / "die").unlink()
        await until(told.front.changes, lambda: told.worker.state is WorkerState.STARTING)
        assert worker_status(told.worker)["warm"] == {}
        told.finish("a", "b")
        await told.results(a, b)


async def test_jobs_that_share_a_device_share_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    front = make_front(tmp_path)
    worker, now_s = front.workers[0], 0.0
    instance = ModelInstance(0, worker.device, front.model, front.changes, front.metrics, front.cluster)
    monkeypatch.setattr(attempt_module, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now_s)}))
    jobs = [job("a", num_images=2), job("b")]
    attempts = [Attempt(one, Team([instance]), front.ledger, front.metrics) for one in jobs]
    instance.reserve(jobs[0])
    for step in (1, 2):
        now_s = 3.0
        attempts[0]._on_progress(StepDone("a", 0, step, 8))
    assert attempts[0].device_s == 3.0
    instance.reserve(jobs[1])
    attempts[1]._charged_s = now_s
    now_s = 5.0
    for step in (3, 4):
        attempts[0]._on_progress(StepDone("a", 0, step, 8))
    attempts[1]._on_progress(StepDone("b", 0, 1, 4))
    assert [attempt.device_s for attempt in attempts] == [4.0, 1.0]
    now_s = 6.0
    attempts[0]._on_progress(Drawn("a", 0))
    assert attempts[0].device_s == 4.5
    count, total = (
        front.metrics.registry.get_sample_value(f"safelight_batch_jobs_{name}") for name in ("count", "sum")
    )
    assert (count, total) == (3, 1 + 2 + 2)


async def test_the_eta_of_a_running_job_counts_what_its_mates_do_meanwhile(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with told_front(tmp_path, checkpoint_dir) as told:
        eta_s, work = told.front.forecast.eta_s, job().params.work
        (a,) = await told.submit("a")
        await told.until_run(a)
        told.front.dispatcher.paces.of(told.front.model.name).measured(work, 4.0)
        assert eta_s(a) == pytest.approx(3.0)
        (b,) = await told.submit("b", num_inference_steps=40)
        await told.until_run(b)
        assert eta_s(a) == pytest.approx(3.0 + 3.0)
        assert eta_s(b) == pytest.approx(39.0 + 3.0)


async def test_a_worker_that_says_nothing_of_batches_gets_one_job_at_a_time(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, "never_finishes_a_step", model=str(checkpoint_dir)) as front:
        await until_ready(front)
        a, b = await submit(front), await submit(front)
        await until(front.changes, lambda: a.step == 1)
        assert (front.workers[0].jobs, front.queue.head(front.model.name)) == ([a], b)
