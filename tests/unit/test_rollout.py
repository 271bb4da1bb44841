"""New processes for all workers, one after the other: who serves meanwhile, and what a failure leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from safelight.jobs import JobStatus
from safelight.server import loader as loader_module
from safelight.server.cluster import LocalCluster
from safelight.server.front import Front
from safelight.server.model_instance import ModelInstance
from safelight.server.worker_state import WorkerState
from safelight.setting_values import keys
from tests.unit.fake_worker import worker_command
from tests.unit.running_front import ended, running_front, serving, submit, until
from tests.unit.test_switch import Two, two_models

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "BACK_OFF_S", (0.0, 0.01, 0.01, 0.01))


@contextlib.asynccontextmanager
async def fleet(folder: Path, *, overlap: str = "never", workers: int = 2, **settings: Any) -> AsyncIterator[Two]:
    async with two_models(folder, overlap=overlap, workers=workers, **settings) as two:
        await two.until(lambda: all(worker.is_serving for worker in two.front.workers))
        yield two


def instances(front: Front) -> list[ModelInstance | None]:
    return [worker.current for worker in front.workers]


def rollout(front: Front) -> dict[str, Any]:
    told: dict[str, Any] = front.status()["rollout"]
    return told


@contextlib.asynccontextmanager
async def least_serving(front: Front) -> AsyncIterator[list[int]]:
    """How many workers served, looked at after every change."""
    seen = [sum(worker.is_serving for worker in front.workers)]

    async def look() -> None:
        while True:
            await front.changes.wait()
            seen.append(sum(worker.is_serving for worker in front.workers))

    looking = asyncio.create_task(look())
    yield seen
    looking.cancel()


@pytest.mark.parametrize(("overlap", "fewest"), [("never", 1), ("always", 2)])
async def test_all_get_new_processes_and_some_serve_all_the_time(overlap: str, fewest: int, tmp_path: Path) -> None:
    async with fleet(tmp_path, overlap=overlap) as two, least_serving(two.front) as counts:
        assert two.front.status()["rollout"] is None
        before = instances(two.front)
        (held,) = await two.submit("a", "held")
        await two.until(lambda: held.step == 1)
        two.front.rollout.order(two.front.workers)
        await two.until(lambda: rollout(two.front)["worker"] == 0)
        assert (rollout(two.front)["state"], rollout(two.front)["waiting"]) == ("running", [1])
        assert await two.results(*await two.submit("a", "1", "2")) == ["a: 1", "a: 2"]
        assert held.status is JobStatus.RUNNING  # and the worker that has it is not done
        assert rollout(two.front)["done"] == []
        two.tell("held.draw")
        assert await two.results(held) == ["a: held"]
        await two.until(lambda: rollout(two.front)["state"] == "done")
        assert (rollout(two.front)["done"], rollout(two.front)["error"]) == ([0, 1], None)
        assert rollout(two.front)["seconds"] > 0
        assert not set(before) & set(instances(two.front))
        assert min(counts) == fewest
        assert held.attempt == 1
        assert [worker.loader.restarts for worker in two.front.workers] == [0, 0]
        assert two.switches == {"done": 0.0, "failed": 0.0}


async def test_the_last_one_that_serves_waits_for_another_one(tmp_path: Path) -> None:
    async with fleet(tmp_path) as two, least_serving(two.front) as counts:
        two.tell("a.load")
        first, second = two.front.workers
        assert second.current is not None and second.current._process is not None
        second.current._process.kill()
        await two.until(lambda: second.state is WorkerState.LOADING)
        two.front.rollout.order([first])
        for _ in range(20):
            await asyncio.sleep(0.005)
            assert first.is_serving
        assert (rollout(two.front)["worker"], rollout(two.front)["waiting"]) == (None, [0])
        two.front.rollout.order([second])  # which can be spared, and comes first
        two.untell("a.load")
        await two.until(lambda: rollout(two.front)["state"] == "done")
        assert rollout(two.front)["done"] == [1, 0]
        assert min(counts) == 1


async def test_where_there_is_one_worker_it_is_restarted_all_the_same(tmp_path: Path) -> None:
    async with fleet(tmp_path, workers=1) as two:
        (before,) = instances(two.front)
        two.front.rollout.order(two.front.workers)
        await two.until(lambda: rollout(two.front)["state"] == "done")
        assert instances(two.front) != [before]
        assert await two.results(*await two.submit("a", "1")) == ["a: 1"]


@pytest.mark.parametrize("overlap", ["never", "always"])
async def test_a_new_process_that_cannot_be_had_leaves_the_others_as_they_are(overlap: str, tmp_path: Path) -> None:
    async with fleet(tmp_path, overlap=overlap) as two:
        before = instances(two.front)
        two.tell("a.fail")
        two.front.rollout.order(two.front.workers)
        await two.until(lambda: rollout(two.front)["state"] == "failed")
        assert rollout(two.front)["error"] == "worker 0: a is broken"
        assert (rollout(two.front)["waiting"], rollout(two.front)["done"]) == ([], [])
        assert instances(two.front)[1] is before[1]
        if overlap == "always":
            assert instances(two.front)[0] is before[0]
            assert two.status("a")["error"] is None
            assert two.front.state == "ready"
        else:
            await two.until(lambda: two.front.workers[0].state is WorkerState.FAILED)
            assert two.front.state == "degraded"
        assert await two.results(*await two.submit("a", "1")) == ["a: 1"]
        two.untell("a.fail")
        two.front.rollout.order(two.front.workers)
        await two.until(lambda: rollout(two.front)["state"] == "done")
        assert two.front.state == "ready"
        counts = two.front.metrics.registry.get_sample_value
        assert counts("safelight_worker_renewals_total", {"result": "failed"}) == 1
        assert counts("safelight_worker_renewals_total", {"result": "done"}) == 2


async def test_a_device_that_was_broken_before_does_not_keep_the_others_from_new_processes(tmp_path: Path) -> None:
    async with fleet(tmp_path) as two:
        broken, healthy = two.front.workers
        broken.loader._cluster = LocalCluster([broken.device], worker_command("fails_to_load", tmp_path / "marker"))
        two.front.rollout.order(two.front.workers)
        await two.until(lambda: broken.state is WorkerState.FAILED)
        before = healthy.current
        two.front.rollout.order(two.front.workers)
        await two.until(lambda: rollout(two.front)["state"] == "failed")
        assert rollout(two.front)["error"] == "worker 0: vae/config.json is missing"
        assert rollout(two.front)["done"] == [1]
        assert healthy.is_serving and healthy.current is not before


async def test_all_go_over_to_another_model_one_after_the_other(tmp_path: Path) -> None:
    async with fleet(tmp_path) as two, least_serving(two.front) as counts:
        two.front.rollout.order(two.front.workers, two.b)
        await two.until(lambda: rollout(two.front)["state"] == "done")
        assert [worker.model for worker in two.front.workers] == [two.b, two.b]
        assert (rollout(two.front)["model"], rollout(two.front)["done"]) == ("b", [0, 1])
        assert min(counts) == 1
        assert two.switches["done"] == 2
        before = instances(two.front)
        two.front.rollout.order(two.front.workers, two.b)  # who has it keeps it
        assert rollout(two.front)["state"] == "done"
        assert instances(two.front) == before


async def test_jobs_that_come_all_the_time_are_all_done(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(
        tmp_path, "has_slow_steps", model=str(checkpoint_dir), workers=2, switch_overlap="never"
    ) as front:
        await until(front.changes, lambda: all(worker.is_serving for worker in front.workers))
        async with least_serving(front) as counts:
            front.rollout.order(front.workers)
            jobs = []
            while rollout(front)["state"] == "running":
                jobs.append(await submit(front, num_inference_steps=2))
                await asyncio.sleep(0.02)
            assert {(await ended(front, job)).status for job in jobs} == {JobStatus.SUCCEEDED}
        assert {job.attempt for job in jobs} == {1}
        assert min(counts) >= 1


async def test_operators_order_it_by_route(tmp_path: Path) -> None:
    async with fleet(tmp_path, overlap="always") as two, serving(two.front) as client:
        before = instances(two.front)
        answer = await client.post("/v1/workers/1/restart")
        assert answer.status_code == 202
        assert answer.json()["rollout"]["waiting"] == [1]
        await two.until(lambda: rollout(two.front)["state"] == "done")
        assert instances(two.front)[0] is before[0]
        assert instances(two.front)[1] is not before[1]
        assert (await client.post("/v1/workers/restart?model=b")).status_code == 202
        await two.until(lambda: rollout(two.front)["state"] == "done")
        assert [worker.model for worker in two.front.workers] == [two.b, two.b]
        for path, code in (("/v1/workers/2/restart", "not_found"), ("/v1/workers/restart?model=c", "model_not_found")):
            answer = await client.post(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, code)


async def test_a_worker_that_keeps_a_pinned_model_goes_to_no_other(tmp_path: Path) -> None:
    async with fleet(tmp_path, overlap="always") as two, serving(two.front) as client:
        two.front.rollout.order(two.front.workers[:1], two.b)
        await two.until(lambda: rollout(two.front)["state"] == "done")
        two.front.placement.pin(two.b, is_pinned=True)
        answer = await client.post("/v1/workers/0/restart?model=a")
        assert answer.status_code == 400
        assert "worker 0 keeps a pinned model" in answer.json()["error"]["message"]
        assert (await client.post("/v1/workers/restart?model=a")).status_code == 202
        await two.until(lambda: rollout(two.front)["state"] == "done")
        assert [worker.model for worker in two.front.workers] == [two.b, two.a]


async def test_restarts_need_an_admin_key(tmp_path: Path, checkpoint_dir: Path) -> None:
    settings: dict[str, Any] = {"api_keys": keys("a=alice-secret"), "admin_keys": keys("ops=admin-secret")}
    async with running_front(tmp_path, model=str(checkpoint_dir), **settings) as front, serving(front) as client:
        for path in ("/v1/workers/restart", "/v1/workers/0/restart"):
            for key, status in (("alice-secret", 403), ("admin-secret", 202)):
                answer = await client.post(path, headers={"authorization": f"Bearer {key}"})
                assert answer.status_code == status
