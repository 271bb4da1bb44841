"""One generation of a worker: a child process and the front's end of its socketpair."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

from safelight.protocol import Channel, Message, Shutdown, WorkerMessage

WORKER_COMMAND = (sys.executable, "-m", "safelight.engine.worker")

_EXIT_GRACE_S = 2.0


class WorkerProcess:
    """Made by ``spawn``; one socketpair each, so nothing that a dead generation left behind reaches the next."""

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel[WorkerMessage]) -> None:
        self._process = process
        self._channel = channel

    @classmethod
    async def spawn(
        cls, environment: Mapping[str, str], log_level: str, command: Sequence[str] = WORKER_COMMAND
    ) -> WorkerProcess:
        """Starts the child from the calling thread, which must outlive it: PR_SET_PDEATHSIG looks at the thread."""
        ours, theirs = socket.socketpair()
        with theirs:
            # First: once there is a child, nothing may be awaited here, or a cancellation would lose it.
            channel: Channel[WorkerMessage] = await Channel.open(ours, WorkerMessage)
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    f"--fd={theirs.fileno()}",
                    f"--parent-pid={os.getpid()}",
                    f"--log-level={log_level}",
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env={**os.environ, **environment},
                    # A group of its own: Ctrl-C is for the front, which then ends the worker in order.
                    process_group=0,
                )
            except BaseException:
                channel.close()
                raise
        return cls(process, channel)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Message) -> None:
        """Queues a message; if the worker is gone, ``receive`` says so."""
        self._channel.send(message)

    async def receive(self) -> WorkerMessage | None:
        """The next message, ``None`` once the worker is gone."""
        return await self._channel.receive()

    async def stop(self, *, politely: bool) -> int:
        """Ends the child: by ``Shutdown`` and two seconds of patience if ``politely``, else by SIGKILL at once."""
        if politely and self._process.returncode is None:
            self.send(Shutdown())
            try:
                async with asyncio.timeout(_EXIT_GRACE_S):
                    await self._process.wait()
            except TimeoutError:
                pass
        if self._process.returncode is None:
            # Not Process.kill: it polls first and may reap the child before asyncio does, which then reports 255.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
        try:
            return await self._process.wait()
        finally:
            self._channel.close()
