"""What the front does once for many: claims, pictures, states. Counted, not timed."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from safelight.errors import StorageFull
from safelight.jobs import Job, JobStatus
from safelight.protocol import EncodedImage, StepDone, Succeeded
from safelight.server import ledger as ledger_module
from safelight.server import serve as serve_module
from safelight.server.attempt import Attempt
from safelight.server.changes import Changes
from safelight.server.front import Front
from safelight.server.placement import Placement
from safelight.server.prediction_stream import REPLICATE, prediction_stream
from safelight.server.remembered import Remembered
from safelight.server.results import PictureFiles
from safelight.server.store import JobStore
from safelight.server.team import Team
from safelight.server.worker import Worker
from tests.unit.running_front import (
    TIMEOUT_S,
    ended,
    job,
    make_front,
    running_front,
    serving,
    serving_instance,
    submit,
    until,
    until_ready,
)

pytestmark = pytest.mark.anyio


def _counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """What the function returned, each time."""
    results: list[Any] = []
    function = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        results.append(function(*args, **kwargs))
        return results[-1]

    monkeypatch.setattr(owner, name, counted)
    return results


# --- changes ------------------------------------------------------------------------------------------------------


async def test_what_is_announced_wakes_those_who_want_to_know_more_and_nobody_else() -> None:
    people = Changes()
    moves = Changes(people)
    devices = Changes(moves)
    moves.announce()
    assert (people.count, moves.count, devices.count) == (1, 1, 0)
    assert (devices.wider, devices.widest, people.widest) == (moves, people, people)


async def test_an_answer_is_found_once_until_something_is_announced() -> None:
    changes, asked = Changes(), list[str]()

    def find(about: str) -> int:
        asked.append(about)
        return len(asked)

    remembered = Remembered(changes, find)
    assert [remembered("a"), remembered("a"), remembered("b")] == [1, 1, 2]
    changes.announce()
    assert remembered("a") == 3


async def test_a_step_of_a_job_wakes_only_those_who_look_at_steps(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "never_finishes_a_step", model=str(checkpoint_dir)) as front:
        running = await submit(front)
        await until(front.changes, lambda: running.status is JobStatus.RUNNING)
        attempt = Attempt(running, Team([serving_instance(front)]), front.ledger, front.metrics)
        left, shown, of_job = front.ledger.work_left(front.model.name), front.changes.count, Changes()
        front.ledger._watched[running.id] = of_job
        moves, devices = front.moves.count, front.device_changes.count
        attempt._on_progress(StepDone(running.id, 1, 1, 4))
        assert (front.changes.count, of_job.count) == (shown + 1, 1)
        assert (front.moves.count, front.device_changes.count) == (moves, devices)
        assert front.ledger.work_left(front.model.name) == pytest.approx(0.75 * left)


async def test_jobs_that_come_and_go_ask_no_device_what_it_has(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front:
        await until_ready(front)
        await ended(front, await submit(front))
        front.placement.settle()
        looks = [_counted(monkeypatch, Placement, name) for name in ("_may_take", "_seconds_until_free", "_is_held")]
        states = _counted(monkeypatch, Worker, "cancel")
        for _ in range(5):
            front.forecast.eta_s(done := await submit(front))
            front.placement.settle()
            await ended(front, done)
        assert [len(seen) for seen in looks] == [0, 0, 0]
        assert states == []


# --- states -------------------------------------------------------------------------------------------------------


async def test_the_state_is_made_once_for_all_who_follow_it(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = make_front(tmp_path, model=str(checkpoint_dir))
    made = list[int]()

    def status() -> dict[str, Any]:
        made.append(front.changes.count)
        return {"number": len(made)}

    monkeypatch.setattr(front.status_feed, "_status", status)
    streams = [front.status_feed.events() for _ in range(50)]
    assert set(await asyncio.gather(*map(anext, streams))) == {b'event: status\ndata: {"number":1}\n\n'}
    following = [asyncio.ensure_future(anext(events)) for events in streams]
    await asyncio.sleep(0)
    front.changes.announce()
    async with asyncio.timeout(TIMEOUT_S):
        assert set(await asyncio.gather(*following)) == {b'event: status\ndata: {"number":2}\n\n'}
    assert len(made) == 2


async def test_a_new_job_is_shown_once(tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        running_front(tmp_path, "never_finishes_loading", model=str(checkpoint_dir)) as front,
        serving(front) as client,
    ):
        shown = _counted(monkeypatch, Front, "show")
        answer = await client.post("/v1/predictions", json={"input": {"prompt": "a red circle"}})
        assert (answer.status_code, len(shown)) == (201, 1)
        assert answer.headers["location"] == answer.json()["urls"]["get"]


async def test_a_step_is_told_to_all_who_follow_the_job_in_the_same_bytes(tmp_path: Path) -> None:
    front, followed, seen = make_front(tmp_path), job(num_inference_steps=7), list[list[Any]]()
    followed.attempt, followed.step = 1, 3
    for _ in range(20):
        stream = prediction_stream(front.dispatcher, followed, dict, REPLICATE)
        events: Any = stream.body_iterator
        seen.append([await anext(events) for _ in range(3)])
        await events.aclose()
    assert seen[0][2] == b"id: 1-3\nevent: logs\ndata:  42%|####      | 3/7\n\n"
    assert all(one is other for told in seen for one, other in zip(told, seen[0], strict=True))


# --- claims -------------------------------------------------------------------------------------------------------


def _four_devices(tmp_path: Path, checkpoint_dir: Path) -> Any:
    return running_front(tmp_path, "never_finishes_a_step", model=str(checkpoint_dir), device="cuda:0,1,2,3")


async def _all_ready(front: Front) -> None:
    await until(front.changes, lambda: all(worker.is_idle for worker in front.workers))


async def test_no_claim_waits_for_another_to_reach_the_disk(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _four_devices(tmp_path, checkpoint_dir) as front:
        await _all_ready(front)
        claim, begun, all_begun = front.store.claim, list[Job](), asyncio.Event()

        async def claim_together(claimed: Job) -> None:
            begun.append(claimed)
            if len(begun) == 4:
                all_begun.set()
            await all_begun.wait()
            assert claimed.status is JobStatus.QUEUED, "nothing begins before it is claimed on disk"
            await claim(claimed)

        monkeypatch.setattr(front.store, "claim", claim_together)
        jobs = [await submit(front) for _ in range(6)]
        await until(front.changes, lambda: front.ledger.count(JobStatus.RUNNING) == 4)
        assert begun == jobs[:4]
        assert [front.forecast.position(waiting) for waiting in jobs] == [None] * 4 + [0, 1]


async def test_claims_that_the_disk_refuses_leave_the_order_as_it_was(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _four_devices(tmp_path, checkpoint_dir) as front:
        await _all_ready(front)
        monkeypatch.setattr(ledger_module, "_STORAGE_PAUSE_S", 0.01)
        claim, is_full, refused = front.store.claim, True, list[Job]()

        async def claim_or_not(claimed: Job) -> None:
            if is_full:
                refused.append(claimed)
                raise StorageFull("full")
            await claim(claimed)

        monkeypatch.setattr(front.store, "claim", claim_or_not)
        jobs = [await submit(front) for _ in range(8)]
        refused.clear()  # while they came, fewer waited
        async with asyncio.timeout(TIMEOUT_S):
            while len(refused) < 12 or len(front.queue) < 8:  # noqa: ASYNC110 (nothing is announced)
                await asyncio.sleep(0.001)
        assert set(refused) == set(jobs[:4]), "none overtook those that were first"
        assert list(front.queue) == jobs
        is_full = False
        await until(front.changes, lambda: front.ledger.count(JobStatus.RUNNING) == 4)
        assert [waiting.status for waiting in jobs] == [JobStatus.RUNNING] * 4 + [JobStatus.QUEUED] * 4


# --- pictures -----------------------------------------------------------------------------------------------------


def _drawn(one: Job) -> Succeeded:
    image = EncodedImage(b"a picture", one.params.output_format, 1, 64, 64)
    return Succeeded(one.id, one.attempt, [image], [], 1, {})


async def test_pictures_of_several_jobs_are_on_their_way_to_the_disk_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = JobStore.open(tmp_path)
    try:
        jobs = [job(f"job_{number}") for number in range(3)]
        for one in jobs:
            await store.add(one)
            await store.claim(one)
        together, write = threading.Barrier(3), store.results.write

        def write_together(name: str, data: bytes) -> None:
            together.wait(TIMEOUT_S)
            write(name, data)

        monkeypatch.setattr(store.results, "write", write_together)
        finishing = (store.finish(one, JobStatus.SUCCEEDED, _drawn(one)) for one in jobs)
        assert await asyncio.gather(*finishing) == [True] * 3
    finally:
        store.close()


async def test_nobody_waits_for_the_picture_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = JobStore.open(tmp_path)
    try:
        one = job("job_1")
        await store.add(one)
        await store.claim(one)
        may_write, write = threading.Event(), store.results.write

        def write_late(name: str, data: bytes) -> None:
            assert may_write.wait(TIMEOUT_S)
            write(name, data)

        monkeypatch.setattr(store.results, "write", write_late)
        finishing = asyncio.create_task(store.finish(one, JobStatus.SUCCEEDED, _drawn(one)))
        async with asyncio.timeout(TIMEOUT_S):
            assert await store.add(job("job_2")) == "job_2"
        stored = await store.get("job_1")
        assert stored is not None and stored.status is JobStatus.RUNNING, "it has not ended before its picture is kept"
        may_write.set()
        assert await finishing
    finally:
        store.close()


def test_a_name_that_comes_while_names_are_made_durable_is_made_durable_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, fsync, synced = PictureFiles(tmp_path / "results"), os.fsync, list[bool]()

    def fsync_and_more(fd: int) -> None:
        fsync(fd)
        synced.append(Path(f"/proc/self/fd/{fd}").resolve().is_dir())
        if synced == [False, True]:
            files.write("b.png", b"b")

    monkeypatch.setattr(os, "fsync", fsync_and_more)
    files.write("a.png", b"a")
    for _ in range(3):
        files.sync()
    assert synced == [False, True, False, True], "a, the folder, b, and the folder again, once"


def test_names_that_could_not_be_made_durable_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = PictureFiles(tmp_path / "results")
    files.write("a.png", b"a")

    def fail(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output"):
            files.sync()
    synced = _counted(monkeypatch, os, "fsync")
    files.sync()
    assert len(synced) == 1


# --- children -----------------------------------------------------------------------------------------------------


async def test_a_child_is_waited_for_without_a_thread() -> None:
    before = threading.active_count()
    with serve_module._children_without_threads(asyncio.get_running_loop()):
        children = [await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE) for _ in range(5)]
        assert threading.active_count() == before
        for child in children:
            await child.communicate(b"")
        assert [child.returncode for child in children] == [0] * 5
    if sys.version_info < (3, 12):
        assert asyncio.get_child_watcher().is_active(), "nobody after it is left with its loop"
