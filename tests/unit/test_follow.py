"""Clients that leave: their jobs are cancelled, whether they wait or run, and nobody else's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx2 as httpx
import pytest

from safelight.jobs import Job, JobStatus
from safelight.server.front import Front
from tests.unit.running_front import TIMEOUT_S, running_front, serving, until, until_ready

pytestmark = pytest.mark.anyio

URL = "/v1/images/generations"


def _spy(front: Front) -> list[Job]:
    """The jobs that are submitted from now on."""
    jobs: list[Job] = []
    submit = front.dispatcher.submit

    async def noted_submit(*arguments: object, **options: object) -> Job:
        jobs.append(await submit(*arguments, **options))  # type: ignore[arg-type]
        return jobs[-1]

    front.dispatcher.submit = noted_submit  # type: ignore[method-assign]
    return jobs


async def _leave(request: asyncio.Task[httpx.Response]) -> None:
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)


async def test_a_client_that_leaves_while_its_job_runs_cancels_it_within_a_step(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, "has_slow_steps", model=str(checkpoint_dir)) as front, serving(front) as client:
        jobs = _spy(front)
        request = asyncio.create_task(client.post(URL, json={"prompt": "a", "steps": 50}))
        await until(front.changes, lambda: jobs and jobs[0].step >= 1)
        step = jobs[0].step
        await _leave(request)
        await until(front.changes, lambda: jobs[0].status.is_terminal)
        assert jobs[0].status is JobStatus.CANCELLED
        assert jobs[0].step <= step + 3
        assert (await client.post(URL, json={"prompt": "b"})).status_code == 200


async def test_a_client_that_leaves_while_its_job_waits_takes_it_out_of_the_queue(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with (
        running_front(tmp_path, "never_finishes_loading", model=str(checkpoint_dir)) as front,
        serving(front) as client,
    ):
        jobs = _spy(front)
        leaving = asyncio.create_task(client.post(URL, json={"prompt": "a"}))
        await until(front.changes, lambda: len(front.queue) == 1)
        staying = asyncio.create_task(client.post(URL, json={"prompt": "b"}))
        await until(front.changes, lambda: len(front.queue) == 2)
        await _leave(leaving)
        await until(front.changes, lambda: len(front.queue) == 1)
        assert [waited.status for waited in jobs] == [JobStatus.CANCELLED, JobStatus.QUEUED]
        await _leave(staying)


async def test_a_client_that_waits_through_the_load_gets_its_picture(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "loads_slowly", model=str(checkpoint_dir)) as front, serving(front) as client:
        assert not front.is_ready
        answers = await asyncio.gather(*(client.post(URL, json={"prompt": f"picture {n}"}) for n in range(4)))
        assert [answer.status_code for answer in answers] == [200] * 4


async def test_a_hundred_clients_that_leave_leave_nothing_behind(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with (
        running_front(tmp_path, "has_slow_steps", model=str(checkpoint_dir), queue_limit=200) as front,
        serving(front) as client,
    ):
        await until_ready(front)
        jobs = _spy(front)
        requests = [asyncio.create_task(client.post(URL, json={"prompt": "a", "steps": 50})) for _ in range(100)]
        await until(front.changes, lambda: len(jobs) == 100)
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        await until(front.changes, lambda: all(left.status is JobStatus.CANCELLED for left in jobs))
        assert (len(front.queue), front.ledger.count(JobStatus.RUNNING)) == (0, 0)
        assert front.workers[0].loader.restarts == 0


async def test_the_request_id_of_the_client_is_that_of_the_job(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        jobs = _spy(front)
        answer = await asyncio.wait_for(
            client.post(URL, json={"prompt": "a"}, headers={"x-request-id": "req_mine"}), TIMEOUT_S
        )
        assert (answer.headers["x-request-id"], jobs[0].request.request_id) == ("req_mine", "req_mine")
        assert answer.headers["x-job-id"] == jobs[0].id
