"""Real worker processes over their socketpairs, several of them at once, without a front."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from safelight.params import GenerationParams
from safelight.protocol import (
    Cancelled,
    Channel,
    Disbanded,
    Failed,
    Generate,
    Helped,
    Load,
    Message,
    Ready,
    StepDone,
    Succeeded,
    TeamPlace,
    Unfit,
    WorkerMessage,
)

TIMEOUT_S = 120.0
OUTCOMES = (Succeeded, Helped, Failed, Unfit, Cancelled, Disbanded)


class WorkerChild:
    """A worker process that loads what it is told."""

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel[WorkerMessage]) -> None:
        self.process = process
        self.channel = channel

    def send(self, message: Message) -> None:
        self.channel.send(message)

    async def until(self, *kinds: type[WorkerMessage]) -> WorkerMessage:
        """The next message of these kinds."""
        async with asyncio.timeout(TIMEOUT_S):
            while not isinstance(message := await self.channel.receive(), kinds):
                assert message is not None, f"ended before {kinds}"
            return message

    async def outcome(self) -> WorkerMessage:
        return await self.until(*OUTCOMES)


@contextlib.asynccontextmanager
async def worker_children(load: Load, count: int) -> AsyncIterator[list[WorkerChild]]:
    """All ready; killed at the end."""
    children = [await _spawn() for _ in range(count)]
    try:
        for child in children:
            child.send(load)
        for child in children:
            await child.until(Ready)
        yield children
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                child.process.kill()
            await child.process.wait()
            child.channel.close()


async def _spawn() -> WorkerChild:
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "safelight.engine.worker", f"--fd={theirs.fileno()}"]
        process = await asyncio.create_subprocess_exec(
            *command,
            f"--parent-pid={os.getpid()}",
            pass_fds=(theirs.fileno(),),
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # several share the cores of a test's machine
        )
    return WorkerChild(process, await Channel.open(ours, WorkerMessage))


def order_team(
    members: Sequence[WorkerChild], rendezvous: Path, params: GenerationParams, job_id: str, image: bytes | None = None
) -> None:
    """Has them make a job together, the first as leader."""
    for rank, member in enumerate(members):
        place = TeamPlace(rank, len(members), str(rendezvous))
        member.send(Generate(job_id, 1, params, image=image, team=place))


async def step_made(member: WorkerChild, step: int) -> None:
    """Waits until it says so."""
    while True:
        message = await member.until(StepDone, *OUTCOMES)
        assert isinstance(message, StepDone), message
        if message.step >= step:
            return
