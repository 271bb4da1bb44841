"""One generation of a worker: a child process and the front's end of its socketpair."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence

from safelight.config import ENV_PREFIX, HUB_TOKEN_VARIABLES
from safelight.protocol import Channel, Message, Shutdown, WorkerMessage
from safelight.server.worker_log import MAX_LINE_BYTES, relay

WORKER_COMMAND = (sys.executable, "-m", "safelight.engine.worker")

_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""A worker's libraries ask nobody, run no code of a model, and look for no token."""

_EXIT_GRACE_S = 2.0
_DUMP_S = 0.3
_LAST_LINES_S = 0.5


class WorkerProcess:
    """Made by ``spawn``; one socketpair each, so nothing that a dead generation left behind reaches the next."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        channel: Channel[WorkerMessage],
        log_relay: asyncio.Task[None] | None = None,
    ) -> None:
        self._process = process
        self._channel = channel
        self._log_relay = log_relay

    @classmethod
    async def spawn(
        cls,
        environment: Mapping[str, str],
        options: Sequence[str] = (),
        command: Sequence[str] = WORKER_COMMAND,
        on_line: Callable[[bytes], None] | None = None,
    ) -> WorkerProcess:
        """Starts the child from the calling thread, which must outlive it: PR_SET_PDEATHSIG looks at the thread.

        Its stderr is ours, or ``on_line`` is called with each line of it.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            # First: once there is a child, nothing may be awaited here, or a cancellation would lose it.
            channel: Channel[WorkerMessage] = await Channel.open(ours, WorkerMessage)
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    f"--fd={theirs.fileno()}",
                    f"--parent-pid={os.getpid()}",
                    *options,
                    stdin=asyncio.subprocess.DEVNULL,
                    stderr=None if on_line is None else asyncio.subprocess.PIPE,
                    limit=MAX_LINE_BYTES,
                    pass_fds=(theirs.fileno(),),
                    env=without_secrets(os.environ) | _OFFLINE | dict(environment),
                    # A group of its own: Ctrl-C is for the front, which then ends the worker in order.
                    process_group=0,
                )
            except BaseException:
                channel.close()
                raise
        if on_line is None or process.stderr is None:
            return cls(process, channel)
        return cls(process, channel, asyncio.create_task(relay(process.stderr, on_line), name="relay a worker's log"))

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def node(self) -> None:
        """This machine."""
        return None

    def send(self, message: Message) -> None:
        """Queues a message; if the worker is gone, ``receive`` says so."""
        self._channel.send(message)

    async def receive(self) -> WorkerMessage | None:
        """The next message, ``None`` once the worker is gone."""
        return await self._channel.receive()

    def kill(self) -> None:
        """SIGKILL, which also ends a stopped process."""
        self._signal(signal.SIGKILL)

    async def dump_stacks(self) -> None:
        """Asks the child to print the stacks of its threads, and gives it a moment; a stopped one cannot."""
        self._signal(signal.SIGUSR1)
        await asyncio.sleep(_DUMP_S)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            # Not Process.kill: it polls first and may reap the child before asyncio does, which then reports 255.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    async def stop(self, *, politely: bool) -> int:
        """Ends the child: by ``Shutdown`` and two seconds of patience if ``politely``, else by SIGKILL at once."""
        if politely and self._process.returncode is None:
            self.send(Shutdown())
            try:
                async with asyncio.timeout(_EXIT_GRACE_S):
                    await self._process.wait()
            except TimeoutError:
                pass
        self.kill()
        try:
            exit_code = await self._process.wait()
            if self._log_relay is not None:  # a process that it left behind may keep it open
                await asyncio.wait({self._log_relay}, timeout=_LAST_LINES_S)
            return exit_code
        finally:
            if self._log_relay is not None:
                self._log_relay.cancel()
            self._channel.close()


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """API keys are the front's, tokens those of ``safelight pull``; a worker reads no settings from the environment."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith((ENV_PREFIX, "HF_OIDC_")) and name not in HUB_TOKEN_VARIABLES
    }
