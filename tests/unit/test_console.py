"""What is written while a model loads and stderr is no terminal: one plain line per step of real progress."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from safelight.protocol import LoadProgress
from safelight.server import console
from safelight.server.console import CurrentStderr, show_progress
from safelight.server.front import Front
from safelight.server.worker_state import WorkerState
from tests.unit.running_front import make_front, running_front, until_ready

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def showing(front: Front) -> AsyncIterator[None]:
    task = asyncio.create_task(show_progress(front, "http://test"))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == console.__name__]


async def _report(front: Front, *progress: LoadProgress) -> None:
    for report in progress:
        front.workers[0].load.advance(report)
        front.changes.announce()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_each_step_of_progress_is_one_line(
    tmp_path: Path, checkpoint_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    front = make_front(tmp_path, model=str(checkpoint_dir))
    async with showing(front):
        await asyncio.sleep(0)
        await _report(
            front,
            LoadProgress("import", None, 0, 7, 0, 0),
            LoadProgress("weights", "transformer", 5, 7, 0, 80_000_000),
            LoadProgress("weights", "transformer", 5, 7, 40_000_000, 80_000_000),
            LoadProgress("weights", "vae", 6, 7, 60_000_000, 80_000_000),
            LoadProgress("warmup", None, 7, 7, 80_000_000, 80_000_000),
        )
        front.workers[0].load.finish({})
        front.changes.announce()
        await asyncio.sleep(0)
    assert _lines(caplog) == [
        "listening on http://test",
        "worker 0: cpu starting",
        "worker 0: cpu import 0/7",
        "worker 0: cpu weights transformer 5/7",
        "worker 0: cpu weights vae 6/7 60.0 of 80.0 MB",
        "worker 0: cpu warmup 7/7 80.0 of 80.0 MB",
    ]


async def test_changes_that_are_no_progress_print_nothing(
    tmp_path: Path, checkpoint_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    front = make_front(tmp_path, model=str(checkpoint_dir))
    async with showing(front):
        for _ in range(20):
            front.changes.announce()
            await asyncio.sleep(0)
    assert len(_lines(caplog)) == 2


async def test_jobs_of_a_ready_server_print_no_load_lines(
    tmp_path: Path, checkpoint_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front:
        await until_ready(front)
        caplog.set_level(logging.INFO)
        async with showing(front):
            await asyncio.sleep(0)
            assert front.workers[0].current is not None
            front.workers[0].current.state = WorkerState.BUSY
            front.changes.announce()
            await asyncio.sleep(0)
        assert _lines(caplog) == ["listening on http://test"]


def test_the_log_handler_writes_to_what_stderr_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = CurrentStderr()
    record = logging.LogRecord("name", logging.INFO, "file", 1, "a %s", ("message",), None)
    for _ in range(2):
        stderr = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stderr)
        handler.handle(record)
        assert stderr.getvalue() == "a message\n"
