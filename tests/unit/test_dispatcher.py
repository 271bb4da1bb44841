"""Jobs from submit to their end, over real fake workers that die, and a real store."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from safelight.errors import (
    IdempotencyMismatch,
    JobCancelled,
    LoadError,
    OutOfMemory,
    QueueFull,
    ShuttingDown,
    StorageFull,
    WorkerCrashed,
)
from safelight.jobs import Job, JobStatus
from safelight.server import ledger as ledger_module
from safelight.server import loader as loader_module
from safelight.server.database import IdempotencyKey
from safelight.server.front import Front
from safelight.server.store import JobStore
from safelight.server.worker_process import WorkerProcess
from safelight.server.worker_state import WorkerState
from tests.unit.running_front import (
    TIMEOUT_S,
    asked,
    ended,
    pictures,
    running_front,
    serving_instance,
    submit,
    until,
    until_ready,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "BACK_OFF_S", (0.0, 0.01))
    monkeypatch.setattr(ledger_module, "_STORAGE_PAUSE_S", 0.01)


async def _interruption(front: Front, waited: Job) -> BaseException | None:
    """What someone who waits for the job is told if it does not end."""
    end = front.dispatcher.end(waited)
    await asyncio.wait({end}, timeout=TIMEOUT_S)
    return end.exception()


def _on_disk(front: Front, job: Job) -> Job:
    stored = front.store._database.get(job.id)
    assert stored is not None
    return stored


async def test_jobs_submitted_while_the_model_loads_are_done_in_order_when_it_is_ready(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, "loads_slowly", model=str(checkpoint_dir)) as front:
        jobs = [await submit(front, prompt=f"picture {number}") for number in range(3)]
        assert (front.ledger.count(JobStatus.QUEUED), front.ledger.count(JobStatus.RUNNING)) == (3, 0)
        for number, waited in enumerate(jobs):
            assert pictures(front, await ended(front, waited)) == [b"picture %d 1" % number]
        assert [waited.status for waited in jobs] == [JobStatus.SUCCEEDED] * 3
        assert [waited.step for waited in jobs] == [4, 4, 4]
        assert [_on_disk(front, waited).status for waited in jobs] == [JobStatus.SUCCEEDED] * 3


async def test_a_job_is_on_disk_before_it_is_accepted(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "never_finishes_loading", model=str(checkpoint_dir)) as front:
        accepted = await submit(front, prompt="kept")
        assert _on_disk(front, accepted).request == accepted.request


async def test_two_devices_work_at_the_same_time(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "never_finishes_a_step", model=str(checkpoint_dir), device="cuda:0,1") as front:
        for _ in range(3):
            await submit(front)
        await until(front.changes, lambda: front.ledger.count(JobStatus.RUNNING) == 2)
        assert front.ledger.count(JobStatus.QUEUED) == 1


async def test_a_job_that_lost_its_worker_knows_which_and_is_done_by_the_other(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, "dies_in_the_first_job", model=str(checkpoint_dir), workers=2) as front:
        await until(front.changes, lambda: all(worker.is_serving for worker in front.workers))
        done = await ended(front, await submit(front))
        assert (done.status, done.attempt, len(done.lost_on)) == (JobStatus.SUCCEEDED, 2, 1)
        (other,) = [worker for worker in front.workers if worker.id not in done.lost_on]
        assert other.current is not None and other.current.has_succeeded


async def test_a_full_queue_refuses_with_a_retry_after_between_1_and_60(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "never_finishes_loading", model=str(checkpoint_dir), queue_limit=2) as front:
        jobs = [await submit(front) for _ in range(2)]
        with pytest.raises(QueueFull) as caught:
            await submit(front)
        assert caught.value.retry_after_s is not None
        assert 1 <= caught.value.retry_after_s <= 60
        assert front.ledger.count(JobStatus.QUEUED) == 2
        assert all(waited.status is JobStatus.QUEUED for waited in jobs)


async def test_many_at_once_are_admitted_up_to_the_limit_and_no_further(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "never_finishes_loading", model=str(checkpoint_dir), queue_limit=5) as front:
        answers = await asyncio.gather(*(submit(front) for _ in range(20)), return_exceptions=True)
        assert sum(isinstance(answer, Job) for answer in answers) == 5
        assert sum(isinstance(answer, QueueFull) for answer in answers) == 15


async def test_the_eta_comes_from_measured_jobs_and_grows_along_the_queue(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "has_slow_steps", model=str(checkpoint_dir)) as front:
        first = await submit(front)
        assert front.forecast.eta_s(first) is None
        await ended(front, first)
        running = await submit(front, num_inference_steps=40)
        await until(front.changes, lambda: running.step >= 1)
        waiting = [await submit(front) for _ in range(3)]
        etas = [front.forecast.eta_s(one) or 0.0 for one in [running, *waiting]]
        assert etas == sorted(etas)
        assert 0.1 < etas[-1] < 60
        assert [front.forecast.position(one) for one in [running, *waiting]] == [None, 0, 1, 2]


# --- idempotency --------------------------------------------------------------------------------------------------


async def test_the_same_key_is_the_same_job_even_a_hundred_times_at_once(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "loads_slowly", model=str(checkpoint_dir)) as front:
        key = IdempotencyKey("mine", "hash")
        jobs = await asyncio.gather(*(front.dispatcher.submit(asked(), key) for _ in range(50)))
        assert len({one.id for one in jobs}) == 1
        assert front.ledger.count(JobStatus.QUEUED) == 1
        await ended(front, jobs[0])
        again = await front.dispatcher.submit(asked(), key)
        assert (again.id, again.status, pictures(front, again)) == (jobs[0].id, "succeeded", [b"a red circle 1"])


async def test_a_key_with_another_body_is_refused_and_another_owner_has_keys_of_its_own(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, "never_finishes_loading", model=str(checkpoint_dir), queue_limit=2) as front:
        first = await front.dispatcher.submit(asked(), IdempotencyKey("mine", "hash"))
        with pytest.raises(IdempotencyMismatch):
            await front.dispatcher.submit(asked(), IdempotencyKey("mine", "another"))
        other = await front.dispatcher.submit(asked(owner="other"), IdempotencyKey("mine", "another"))
        assert other.id != first.id


async def test_a_job_is_found_by_its_owner_only(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front:
        mine = await front.dispatcher.submit(asked(owner="me"), IdempotencyKey("my name for it", "hash"))
        for _ in range(2):  # while it waits or runs, and once it has ended
            for name in (mine.id, "my name for it"):
                found = await front.ledger.find(name, "me")
                assert found is not None and found.id == mine.id
                assert await front.ledger.find(name, "you") is None
            await ended(front, mine)


# --- cancel -------------------------------------------------------------------------------------------------------


async def test_a_waiting_job_is_cancelled_at_once(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "never_finishes_loading", model=str(checkpoint_dir)) as front:
        waited = await submit(front)
        await front.dispatcher.cancel(waited)
        assert waited.status is JobStatus.CANCELLED
        assert _on_disk(front, waited).status is JobStatus.CANCELLED
        assert front.ledger.count(JobStatus.QUEUED) == 0
        with pytest.raises(JobCancelled):
            _ = (await ended(front, waited)).result
        await front.dispatcher.cancel(waited)


async def test_a_running_job_is_cancelled_at_its_next_step(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "has_slow_steps", model=str(checkpoint_dir)) as front:
        running = await submit(front, num_inference_steps=200)
        await until(front.changes, lambda: running.step >= 2)
        await front.dispatcher.cancel(running)
        with pytest.raises(JobCancelled, match=r"the job was cancelled after step \d"):
            _ = (await ended(front, running)).result
        assert running.status is JobStatus.CANCELLED
        assert running.step <= 5
        assert pictures(front, await ended(front, await submit(front)))


async def test_a_job_cancelled_on_its_way_to_the_worker_never_runs(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_front(tmp_path, "never_finishes_a_step", model=str(checkpoint_dir)) as front:
        await until_ready(front)
        claim = front.store.claim

        async def claim_and_cancel(job: Job) -> None:
            await claim(job)
            await front.dispatcher.cancel(job)

        monkeypatch.setattr(front.store, "claim", claim_and_cancel)
        waited = await ended(front, await submit(front))
        assert (waited.status, waited.step) == (JobStatus.CANCELLED, 0)
        assert front.workers[0].is_idle


async def test_cancelling_a_finished_job_does_nothing(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front:
        finished = await ended(front, await submit(front))
        await front.dispatcher.cancel(finished)
        assert finished.status is JobStatus.SUCCEEDED


# --- deaths and failures ------------------------------------------------------------------------------------------


async def test_a_job_that_the_engine_fails_ends_with_the_engines_error(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "fails_the_job", model=str(checkpoint_dir)) as front:
        failing = await ended(front, await submit(front))
        with pytest.raises(OutOfMemory, match="64x64 is too large for cuda:0"):
            _ = failing.result
        assert failing.status is JobStatus.FAILED


async def test_a_job_whose_worker_dies_runs_again_and_comes_before_the_next(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, "dies_in_the_first_job", model=str(checkpoint_dir)) as front:
        first, second = await submit(front, prompt="first"), await submit(front, prompt="second")
        await ended(front, second)
        assert pictures(front, first) == [b"first 1"]
        assert (first.status, first.attempt, first.crashes) == (JobStatus.SUCCEEDED, 2, 1)
        assert (second.attempt, second.crashes) == (1, 0)


async def test_a_job_that_kills_three_workers_fails_and_the_next_one_is_tried(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, "dies_in_a_job", model=str(checkpoint_dir)) as front:
        poison = await ended(front, await submit(front))
        with pytest.raises(WorkerCrashed):
            _ = poison.result
        assert (poison.status, poison.attempt) == (JobStatus.FAILED, 3)
        next_one = await submit(front)
        await until(front.changes, lambda: next_one.attempt == 1)


async def test_an_unfit_worker_is_replaced_and_its_job_runs_again(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "is_unfit_once", model=str(checkpoint_dir)) as front:
        done = await ended(front, await submit(front))
        assert (done.status, done.attempt, done.crashes) == (JobStatus.SUCCEEDED, 2, 1)
        assert front.workers[0].loader.restarts == 1


async def test_a_worker_that_hangs_is_killed_and_its_job_runs_again(
    tmp_path: Path, checkpoint_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_front(tmp_path, "hangs_once", model=str(checkpoint_dir), hang_timeout_s=0.3) as front:
        await until_ready(front)
        serving_instance(front)._watchdog.warmed_up(0.0)
        done = await ended(front, await submit(front))
        assert (done.status, done.attempt, done.crashes) == (JobStatus.SUCCEEDED, 2, 1)
        assert "made no step of" in caplog.text


async def test_a_job_submitted_the_moment_a_worker_dies_is_done_by_its_successor(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_front(tmp_path, "closes_its_socket_in_the_first_job", model=str(checkpoint_dir)) as front:
        await until_ready(front)
        stop = WorkerProcess.stop
        submitted: list[Job] = []

        async def stop_and_submit(process: WorkerProcess, *, politely: bool) -> int:
            submitted.append(await submit(front, prompt="second"))
            await asyncio.sleep(0.05)  # long enough for a wrong hand-over
            monkeypatch.undo()
            return await stop(process, politely=politely)

        monkeypatch.setattr(WorkerProcess, "stop", stop_and_submit)
        first = await ended(front, await submit(front))
        assert first.attempt == 2
        second = await ended(front, submitted[0])
        assert (pictures(front, second), second.attempt) == ([b"second 1"], 1)


async def test_when_the_load_fails_everybody_who_waits_is_told_and_nobody_is_admitted(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, "fails_to_load", model=str(checkpoint_dir)) as front:
        jobs = [await submit(front) for _ in range(2)]
        errors = [await _interruption(front, waited) for waited in jobs]
        assert all(isinstance(error, LoadError) and "vae/config.json" in error.message for error in errors)
        with pytest.raises(LoadError, match=r"vae/config\.json"):
            await submit(front)
        assert [waited.status for waited in jobs] == [JobStatus.QUEUED] * 2


async def test_after_a_retry_jobs_that_waited_are_done_and_new_ones_admitted(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, "fails_to_load_once", model=str(checkpoint_dir)) as front:
        early = await submit(front)
        await until(front.changes, lambda: front.workers[0].state is WorkerState.FAILED)
        front.placement.load(front.model)
        assert pictures(front, await ended(front, early))
        assert pictures(front, await ended(front, await submit(front)))


# --- storage ------------------------------------------------------------------------------------------------------


async def test_a_job_that_cannot_be_stored_is_refused_and_frees_its_place(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned, prune = asyncio.Event(), JobStore.prune

    async def prune_and_say(store: JobStore, ttl_s: float, limit_bytes: int) -> int:
        try:
            return await prune(store, ttl_s, limit_bytes)
        finally:
            pruned.set()

    monkeypatch.setattr(JobStore, "prune", prune_and_say)
    async with running_front(tmp_path, "never_finishes_loading", model=str(checkpoint_dir), queue_limit=1) as front:
        await asyncio.wait_for(pruned.wait(), TIMEOUT_S)  # or that write would say that all is well again

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(front.store._database, "add", full)
        with pytest.raises(StorageFull):
            await submit(front)
        assert isinstance(front.store.trouble, StorageFull)
        assert (front.state, front.is_ready) == ("loading", False)
        monkeypatch.undo()
        await submit(front)
        assert front.store.trouble is None


async def test_an_end_that_cannot_be_stored_is_tried_until_it_can(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front:
        await until_ready(front)
        failures = iter([OSError(28, "full"), OSError(28, "full"), OSError(28, "full")])
        write = front.store.results.write

        def write_at_last(name: str, data: bytes) -> None:
            for failure in failures:
                raise failure
            write(name, data)

        monkeypatch.setattr(front.store.results, "write", write_at_last)
        done = await ended(front, await submit(front))
        assert (done.attempt, pictures(front, done)) == (1, [b"a red circle 1"])
        assert front.store.trouble is None
        assert front.is_ready


async def test_an_outcome_whose_attempt_is_over_on_disk_changes_nothing(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_front(tmp_path, "has_slow_steps", model=str(checkpoint_dir)) as front:
        running = await submit(front)
        await until(front.changes, lambda: running.step >= 1)
        front.store._database._change("UPDATE jobs SET attempt = 7 WHERE id = ?", (running.id,))
        await until(front.changes, lambda: front.workers[0].is_idle)
        for _ in range(100):
            if front.metrics.fenced._value.get():
                break
            await asyncio.sleep(0.01)
        stored = _on_disk(front, running)
        assert (stored.status, stored.attempt, stored.outcome) == (JobStatus.RUNNING, 7, None)
        assert front.metrics.fenced._value.get() == 1
        assert [entry.name for entry in (tmp_path / "data" / "results").iterdir()] == []


# --- restart ------------------------------------------------------------------------------------------------------


async def test_what_one_server_accepted_the_next_one_does(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "never_finishes_a_step", model=str(checkpoint_dir)) as front:
        jobs = [await submit(front, prompt=f"picture {number}") for number in range(3)]
        await until(front.changes, lambda: jobs[0].step == 1)
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front:
        late = await submit(front, prompt="late")
        await ended(front, late)
        found = [await front.ledger.find(job.id, "") for job in jobs]
        assert [done and pictures(front, done) for done in found] == [[b"picture %d 1" % n] for n in range(3)]
        assert [done and (done.attempt, done.crashes) for done in found] == [(2, 0), (1, 0), (1, 0)]


# --- drain --------------------------------------------------------------------------------------------------------


async def test_a_draining_server_answers_who_waits_keeps_the_job_and_finishes_what_runs(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, "has_slow_steps", model=str(checkpoint_dir)) as front:
        running, waiting = await submit(front), await submit(front)
        end = front.dispatcher.end(waiting)
        await until(front.changes, lambda: running.step >= 1)
        draining = asyncio.create_task(front.drain())
        await asyncio.wait({end}, timeout=TIMEOUT_S)
        error = end.exception()
        assert isinstance(error, ShuttingDown) and waiting.id in error.message
        assert isinstance(await _interruption(front, waiting), ShuttingDown)
        with pytest.raises(ShuttingDown) as caught:
            await submit(front)
        assert caught.value.retry_after_s
        assert pictures(front, await ended(front, running))
        await draining
        assert (running.status, waiting.status) == (JobStatus.SUCCEEDED, JobStatus.QUEUED)
        assert _on_disk(front, waiting).status is JobStatus.QUEUED


@pytest.mark.parametrize("behaviour", ["has_slow_steps", "never_finishes_a_step"])
async def test_what_runs_longer_than_the_grace_period_waits_again(
    behaviour: str, tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, behaviour, model=str(checkpoint_dir), grace_period_s=0.1) as front:
        running = await submit(front, num_inference_steps=200)
        end = front.dispatcher.end(running)
        await until(front.changes, lambda: running.step >= 1)
        await asyncio.wait_for(front.drain(), TIMEOUT_S)
        assert isinstance(end.exception(), ShuttingDown)
        stored = _on_disk(front, running)
        assert (stored.status, stored.crashes) == (JobStatus.QUEUED, 0)


async def test_draining_an_idle_server_is_immediate(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir), grace_period_s=600.0) as front:
        await until_ready(front)
        await asyncio.wait_for(front.drain(), TIMEOUT_S)
