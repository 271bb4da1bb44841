"""How much memory a worker's device has left, from the engine to the status."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from safelight.checkpoint import open_checkpoint
from safelight.config import STUB_MODEL
from safelight.engine.memory import memory_of
from safelight.engine.stub import StubEngine
from safelight.protocol import Memory
from tests.unit.running_front import params
from tests.unit.stub_front import stub_server

pytestmark = pytest.mark.anyio


def test_on_a_cpu_it_is_what_the_process_uses_of_the_machine() -> None:
    found = memory_of("cpu")
    assert found.total_bytes == psutil.virtual_memory().total
    assert 1_000_000 < found.used_bytes < found.total_bytes


async def test_the_engine_tells_it_after_each_job() -> None:
    told: list[Memory] = []
    async with StubEngine() as engine:
        engine.on_memory = told.append
        await engine.load_model(open_checkpoint(STUB_MODEL), "cpu")
        for count in (1, 2):
            await engine.generate_image(params(seed=count))
    assert len(told) == 2  # the thread has ended: nothing is on its way


async def test_the_status_has_it_once_a_picture_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub_server(tmp_path, monkeypatch) as (_, client):
        (worker,) = (await client.get("/v1/status")).json()["workers"]
    assert 0 < worker["memory"]["used_bytes"] < worker["memory"]["total_bytes"]
