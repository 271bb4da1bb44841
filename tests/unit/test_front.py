"""The front from its first worker to its last: states, readiness, second tries, stopping."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from safelight import __version__
from safelight.errors import ShuttingDown
from safelight.jobs import JobStatus
from safelight.server import front as front_module
from safelight.server import loader as loader_module
from safelight.server.front import Front
from safelight.server.model_status import model_list
from safelight.server.worker import Worker
from tests.unit.fake_checkpoint import write_checkpoint
from tests.unit.running_front import TIMEOUT_S, make_front, running_front, submit, until, until_ready

pytestmark = pytest.mark.anyio


def _listed(front: Front) -> list[dict[str, Any]]:
    return model_list(front.models, front.workers, front.queue, front.config.model_aliases)


@pytest.fixture(autouse=True)
def _no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "BACK_OFF_S", (0.0, 0.01))


@pytest.mark.timed
async def test_start_returns_before_anything_is_loaded(tmp_path: Path, checkpoint_dir: Path) -> None:
    start_s = time.monotonic()
    async with running_front(tmp_path, "never_finishes_loading", model=str(checkpoint_dir)) as front:
        assert time.monotonic() - start_s < 1
        assert (front.state, front.is_ready, front.has_started) == ("loading", False, False)
        await until(front.changes, lambda: front.workers[0].load.progress.bytes_done)
        assert front.state == "loading"


async def test_a_warm_worker_makes_it_ready_and_started(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front:
        await until_ready(front)
        assert (front.state, front.has_started) == ("ready", True)
        front.begin_drain()
        assert (front.state, front.is_ready, front.has_started) == ("draining", False, True)


async def test_started_is_remembered_even_if_nobody_asked_before_the_worker_died(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, "dies_in_the_first_job", model=str(checkpoint_dir)) as front:
        await submit(front)
        await until(front.changes, lambda: front.workers[0].loader.restarts == 1 and not front.is_ready)
        assert front.has_started


async def test_a_missing_model_is_a_status_and_not_an_exception(tmp_path: Path) -> None:
    async with running_front(tmp_path, model=str(tmp_path / "nowhere")) as front:
        await until(front.changes, lambda: front.state == "failed")
        (entry,) = _listed(front)
        assert (entry["id"], entry["state"]) == (str(tmp_path / "nowhere"), "failed")
        assert str(tmp_path / "nowhere") in entry["error"]
        assert str(tmp_path / "nowhere") in front.status()["workers"][0]["error"]


async def test_a_repaired_model_loads_on_request(tmp_path: Path) -> None:
    async with running_front(tmp_path, model=str(tmp_path / "model")) as front:
        await until(front.changes, lambda: front.state == "failed")
        write_checkpoint(tmp_path / "model")
        front.placement.load(front.models.find(str(tmp_path / "model")))
        assert front.state == "loading"
        await until_ready(front)
        assert [entry["id"] for entry in _listed(front)] == ["test/tiny"]


async def test_the_status_is_json_with_the_members_of_the_contract(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir), queue_limit=5) as front:
        await until_ready(front)
        status = json.loads(json.dumps(front.status()))
        uptime_s = status.pop("uptime_s")
        assert 0 < uptime_s < 60
        worker = status.pop("workers")[0]
        assert status == {
            "status": "ready",
            "version": __version__,
            "model": str(checkpoint_dir),
            "models": [
                {
                    "id": "test/tiny",
                    "state": "ready",
                    "loaded_on": ["cpu"],
                    "pinned": False,
                    "waiting": 0,
                    "error": None,
                }
            ],
            "queue": {"waiting": 0, "running": 0, "limit": 5},
            "images_per_min": 0.0,
            "storage": {"error": None},
            "cluster": None,
            "rollout": None,
        }
        assert set(worker) >= {
            *("id", "device", "state", "phase", "component", "components_done", "components_total"),
            *("bytes_done", "bytes_total", "eta_s", "seconds", "error", "restarts"),
        }


TASKS = ["text-to-image", "image-to-image", "inpainting"]


async def test_a_model_entry_is_openais_plus_what_it_can_do(tmp_path: Path, checkpoint_dir: Path) -> None:
    front = make_front(tmp_path, model=str(checkpoint_dir))
    await front.models.refresh()
    (entry,) = _listed(front)
    assert {name: entry[name] for name in ("id", "object", "created", "owned_by")} == {
        "id": "test/tiny",
        "object": "model",
        "created": 0,
        "owned_by": "safelight",
    }
    assert (entry["default_size"], entry["tasks"], entry["max_size"]) == ("64x64", TASKS, 512)


@pytest.mark.parametrize("behaviour", ["is_ready", "never_finishes_loading", "fails_to_load", "dies_while_loading"])
async def test_stop_leaves_no_process_and_no_task_and_can_be_repeated(
    behaviour: str, tmp_path: Path, checkpoint_dir: Path
) -> None:
    tasks_before = asyncio.all_tasks()
    async with running_front(tmp_path, behaviour, model=str(checkpoint_dir)) as front:
        await until(front.changes, lambda: front.workers[0].load.progress.bytes_done or front.state == "failed")
        await front.stop()
        await front.stop()
        assert front.is_stopped
        assert front.state == "draining"
    assert not psutil.Process().children()
    assert asyncio.all_tasks() == tasks_before


async def test_stop_right_after_start_leaves_no_process(tmp_path: Path, checkpoint_dir: Path) -> None:
    for turns in (0, 1, 5, 20):
        (tmp_path / str(turns)).mkdir()
        async with running_front(tmp_path / str(turns), model=str(checkpoint_dir)):
            for _ in range(turns):
                await asyncio.sleep(0.002)
        assert not psutil.Process().children()


async def test_stop_answers_a_client_whose_job_runs(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "never_finishes_a_step", model=str(checkpoint_dir)) as front:
        end = front.dispatcher.end(await submit(front))
        await until(front.changes, lambda: front.ledger.count(JobStatus.RUNNING) == 1)
        await asyncio.wait_for(front.stop(), TIMEOUT_S)
        assert isinstance(end.exception(), ShuttingDown)


async def test_a_defect_in_a_task_is_logged_and_the_task_starts_again(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(front_module, "_DEFECT_PAUSE_S", 0.0)
    keep = Worker.keep
    defects = iter([ZeroDivisionError("a defect")])

    async def keep_with_a_defect(self: Worker) -> None:
        for defect in defects:
            raise defect
        await keep(self)

    monkeypatch.setattr(Worker, "keep", keep_with_a_defect)
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front:
        await until_ready(front)
    assert "keep worker 0 failed; it starts again" in caplog.text
