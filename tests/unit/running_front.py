"""A ``Front`` over a fake worker, and a real HTTP server around it, in the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import uvicorn

from safelight.config import Config
from safelight.jobs import Job, JobRequest
from safelight.params import GenerationParams
from safelight.server.app import create_app
from safelight.server.changes import Changes
from safelight.server.front import Front
from safelight.server.listener import bind, url_of
from safelight.server.model_instance import ModelInstance
from safelight.server.store import JobStore
from tests.plain_http import open_async_client
from tests.unit.fake_checkpoint import write_checkpoint
from tests.unit.fake_worker import worker_command

TIMEOUT_S = 15.0


def params(**members: Any) -> GenerationParams:
    """Parameters that the fake checkpoint's card allows."""
    defaults: dict[str, Any] = {
        "prompt": "a red circle",
        "width": 64,
        "height": 64,
        "num_inference_steps": 4,
        "max_sequence_length": 64,
        "seed": 1,
    }
    return GenerationParams(**defaults | members)


def asked(owner: str = "", priority: int = 0, model: str = "", **members: Any) -> JobRequest:
    """What a route would hand to the dispatcher."""
    return JobRequest(params=params(**members), request_id="req_1", owner=owner, priority=priority, model=model)


def job(name: str = "job_1", **members: Any) -> Job:
    return Job(name, asked(**members))


async def submit(front: Front, **members: Any) -> Job:
    return await front.dispatcher.submit(asked(**members))


async def ended(front: Front, waited: Job) -> Job:
    """The job once it has ended, well or not."""
    return await asyncio.wait_for(asyncio.shield(front.dispatcher.end(waited)), TIMEOUT_S)


def pictures(front: Front, done: Job) -> list[bytes]:
    """What the files of a job hold; raises what it failed with."""
    return [front.store.results.path(image.file).read_bytes() for image in done.result.images]


open_stores: list[JobStore] = []
"""Of fronts that tests make without running them; closed at the end of all tests."""


def make_front(folder: Path, behaviour: str = "is_ready", **settings: Any) -> Front:
    """Not started. ``folder`` gets the checkpoint, unless ``model`` names one, and the data directory."""
    model = settings.pop("model", None) or str(write_checkpoint(folder / "checkpoint"))
    (folder / "data").mkdir(exist_ok=True)
    defaults: dict[str, Any] = {"model": model, "data_dir": folder / "data", "device": "cpu", "grace_period_s": 5.0}
    config = Config(**defaults | settings)
    open_stores.append(JobStore.open(config.data_dir))
    return Front(config, open_stores[-1], worker_command(behaviour, folder / "marker"))


@contextlib.asynccontextmanager
async def running_front(folder: Path, behaviour: str = "is_ready", **settings: Any) -> AsyncIterator[Front]:
    """Started; stopped at the end, whatever happens."""
    front = make_front(folder, behaviour, **settings)
    await front.start()
    try:
        yield front
    finally:
        await asyncio.wait_for(front.stop(), TIMEOUT_S)
        open_stores.remove(front.store)
        front.store.close()


async def until(changes: Changes, condition: Callable[[], object]) -> None:
    """Waits for announced changes until the condition holds."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await changes.wait()


def serving_instance(front: Front) -> ModelInstance:
    """What the first device has loaded."""
    instance = front.workers[0].current
    assert instance is not None
    return instance


async def until_ready(front: Front) -> None:
    await until(front.changes, lambda: front.is_ready)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serving(front: Front) -> AsyncIterator[httpx.AsyncClient]:
    """uvicorn on a free loopback port, as ``serve`` runs it, and a client of it."""
    sock = bind("127.0.0.1", 0)
    config = uvicorn.Config(
        create_app(front),
        http="h11",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=2,
    )
    server = _Server(config)
    http = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        async with open_async_client(url_of(sock), TIMEOUT_S) as client:
            yield client
    finally:
        server.should_exit = True
        await asyncio.wait_for(http, TIMEOUT_S)
        sock.close()
