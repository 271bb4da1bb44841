"""What many jobs leave behind: R50-R52, R55 of the reliability map."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import psutil
import pytest

from safelight.checkpoint import open_checkpoint
from safelight.engine.model_manager import ModelManager
from tests.chaos.chaos_server import at_once
from tests.chaos.conftest import Start
from tests.checkpoints import make_checkpoint

MB = 1e6


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_thousand_jobs_leave_no_memory_no_files_and_no_threads(start: Start) -> None:
    """R50, R55: good, cancelled and refused ones mixed; every scrape adds up."""
    server = start("--queue-limit", "2000", step_s=0.001)
    source = random.Random(50)
    front, worker = psutil.Process(server.process.pid), psutil.Process(server.worker_pid())

    def some_jobs(count: int) -> None:
        def one(number: int) -> None:
            answer = server.try_submit(seed=number, steps=source.choice((1, 2, 500)))
            if answer.status_code == 201 and source.random() < 0.2:
                server.post(f"/v1/predictions/{answer.json()['id']}/cancel")

        for _ in range(count // 10):
            at_once(10, one)
            assert server.is_balanced()
        server.wait_until(lambda status: status["queue"]["waiting"] == status["queue"]["running"] == 0)

    some_jobs(200)
    before = [(process.memory_info().rss, process.num_fds(), process.num_threads()) for process in (front, worker)]
    some_jobs(1000)
    after = [(process.memory_info().rss, process.num_fds(), process.num_threads()) for process in (front, worker)]
    for (rss, files, threads), (rss_after, files_after, threads_after), limit in zip(
        before, after, (10, 16), strict=True
    ):
        assert rss_after - rss < limit * MB
        assert abs(files_after - files) <= 2
        assert threads_after - threads <= 1
    accepted = server.metric("requests_accepted_total")
    assert server.metric("requests_total") == accepted > 700
    assert server.metric("requests_total", status="failed") == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_hundred_loads_leave_no_memory_and_no_shared_memory(tmp_path: Path) -> None:
    """R51: of a tiny FLUX of half a megabyte in the real classes.

    The first fifty are for the allocator, which takes an arena now and then; a model that stayed would be seen after
    twenty more.
    """
    checkpoint = open_checkpoint(str(make_checkpoint(tmp_path / "tiny")))

    async def load_and_free() -> None:
        async with ModelManager() as manager:
            await manager.load_model(checkpoint, "cpu")

    own = psutil.Process()
    for number in range(100):
        asyncio.run(load_and_free())
        if number == 49:
            rss, files, shared = own.memory_info().rss, own.num_fds(), len(os.listdir("/dev/shm"))
    assert own.memory_info().rss - rss < 10 * MB
    assert own.num_fds() <= files
    assert len(os.listdir("/dev/shm")) == shared
