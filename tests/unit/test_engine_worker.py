"""The real worker process, with the stub engine, over its socketpair."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from safelight.config import STUB_MODEL
from safelight.protocol import (
    Cancel,
    Cancelled,
    Channel,
    Failed,
    Generate,
    Load,
    Ready,
    Shutdown,
    StepDone,
    Succeeded,
    Unfit,
    WorkerMessage,
)
from tests.unit.running_front import TIMEOUT_S, params

pytestmark = pytest.mark.anyio

LOAD = Load(STUB_MODEL, "cpu", "auto", [])


class Child:
    def __init__(self, process: asyncio.subprocess.Process, channel: Channel[WorkerMessage]) -> None:
        self.process = process
        self.channel = channel

    async def until(self, *kinds: type[WorkerMessage]) -> WorkerMessage:
        async with asyncio.timeout(TIMEOUT_S):
            while not isinstance(message := await self.channel.receive(), kinds):
                assert message is not None, f"ended before {kinds}"
            return message

    async def run(self, name: str = "job_1", attempt: int = 1, steps: int = 4) -> WorkerMessage:
        self.channel.send(Generate(name, attempt, params(num_inference_steps=steps)))
        return await self.until(Succeeded, Failed, Unfit, Cancelled)

    async def end(self) -> tuple[int, str]:
        """Exit code and what it wrote to stderr."""
        _, written = await asyncio.wait_for(self.process.communicate(), TIMEOUT_S)
        return self.process.returncode or 0, written.decode()


@pytest.fixture
async def child(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Child]:
    """Loaded; ``request.param`` is its fault specification."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "safelight.engine.worker", f"--fd={theirs.fileno()}"]
        options = [
            f"--parent-pid={os.getpid()}",
            f"--faults={getattr(request, 'param', '')}",
            f"--faults-dir={tmp_path}",
        ]
        process = await asyncio.create_subprocess_exec(
            *command, *options, pass_fds=(theirs.fileno(),), stderr=asyncio.subprocess.PIPE
        )
    child = Child(process, await Channel.open(ours, WorkerMessage))
    child.channel.send(LOAD)
    await child.until(Ready)
    yield child
    if process.returncode is None:
        process.kill()
        await process.communicate()
    child.channel.close()


async def test_a_job_goes_through_its_steps_and_pictures(child: Child) -> None:
    child.channel.send(Generate("job_1", 3, params(num_inference_steps=2, num_images=2)))
    async with asyncio.timeout(TIMEOUT_S):
        assert [await child.channel.receive() for _ in range(4)] == [StepDone("job_1", 3, n, 4) for n in (1, 2, 3, 4)]
    done = await child.until(Succeeded)
    assert isinstance(done, Succeeded)
    assert (done.attempt, [image.data[:4] for image in done.images]) == (3, [b"\x89PNG"] * 2)
    child.channel.send(Shutdown())
    assert await child.end() == (0, "")


async def test_a_cancelled_job_stops_and_the_next_one_runs(child: Child) -> None:
    child.channel.send(Generate("job_1", 1, params(num_inference_steps=200)))
    await child.until(StepDone)
    child.channel.send(Cancel("job_1"))
    assert isinstance(await child.until(Cancelled, Succeeded), Cancelled)
    assert isinstance(await child.run("job_2"), Succeeded)


async def test_a_job_that_is_cancelled_before_it_began_is_answered(child: Child) -> None:
    """Both messages in one read: the front waits for an outcome, whatever the order in which tasks begin."""
    for number in range(20):
        child.channel.send(Generate(f"job_{number}", 1, params(num_inference_steps=200)))
        child.channel.send(Cancel(f"job_{number}"))
        assert await child.until(Cancelled, Succeeded) == Cancelled(f"job_{number}", 1)


@pytest.mark.parametrize(
    ("child", "code"),
    [("engine.step@2=cuda", "device_fault"), ("engine.decode=nan", "bad_output"), ("engine.decode=flat", "bad_output")],
    indirect=["child"],
)
async def test_a_worker_that_cannot_be_trusted_says_so_and_ends(child: Child, code: str) -> None:
    outcome = await child.run()
    assert isinstance(outcome, Unfit)
    assert outcome.code == code
    assert (await child.end())[0] == os.EX_SOFTWARE


@pytest.mark.parametrize("child", ["engine.step@2=oom"], indirect=True)
async def test_out_of_memory_fails_one_job(child: Child) -> None:
    outcome = await child.run()
    assert isinstance(outcome, Failed)
    assert outcome.code == "out_of_memory"
    assert isinstance(await child.run("job_2"), Succeeded)


async def test_it_prints_its_stacks_when_asked_and_goes_on(child: Child) -> None:
    child.process.send_signal(signal.SIGUSR1)
    assert isinstance(await child.run(), Succeeded)
    child.channel.send(Shutdown())
    code, written = await child.end()
    assert code == 0
    assert "most recent call first" in written


async def test_it_ends_when_the_front_is_gone(child: Child) -> None:
    child.channel.close()
    assert (await child.end())[0] == 1
