"""Where workers run: what this machine and a cluster of machines have in common, and this machine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from safelight.protocol import Message, WorkerMessage
from safelight.server.devices import Device
from safelight.server.served_model import ServedModel
from safelight.server.worker_log import log_line
from safelight.server.worker_orders import process_options
from safelight.server.worker_process import WORKER_COMMAND, WorkerProcess

Resize = Callable[[Sequence[Device]], None]
"""Told which devices there are now; says nothing about what runs on them."""


class EngineProcess(Protocol):
    """One generation of a worker, wherever it runs. What it sends after its end reaches nobody."""

    @property
    def node(self) -> str | None:
        """The machine that it runs on; ``None`` for this one, and while it has none yet."""

    def send(self, message: Message) -> None:
        """Queues a message; if the process is gone, ``receive`` says so."""

    async def receive(self) -> WorkerMessage | None:
        """The next message, ``None`` once the process is gone. Raises ``ProtocolError``."""

    def kill(self) -> None:
        """Ends it at once, though it hangs."""

    async def dump_stacks(self) -> None:
        """Has it print the stacks of its threads, if it still can."""

    async def stop(self, *, politely: bool) -> int | None:
        """Its exit code once it is gone; ``None`` if it was lost with its machine, which is nobody's fault."""


class Cluster(Protocol):
    """The devices that there are, and how a process is started on one of them."""

    @property
    def devices(self) -> Sequence[Device]:
        """Those that there are from the beginning."""

    async def spawn(self, device: Device, worker_id: int, model: ServedModel) -> EngineProcess:
        """Starts a process that is to have this model. Raises ``OSError``."""

    async def keep(self, resize: Resize) -> None:
        """Runs for as long as devices may come and go, and tells of them, also of those that are as they were."""

    def status(self) -> dict[str, Any] | None:
        """What ``/v1/status`` says of it; its ``error`` is why it cannot be reached."""

    async def close(self) -> None:
        """All processes have ended."""


class LocalCluster:
    """This machine alone: a child process for each device."""

    def __init__(self, devices: Sequence[Device], command: Sequence[str] = WORKER_COMMAND) -> None:
        self.devices = devices
        self._command = command

    async def spawn(self, device: Device, worker_id: int, model: ServedModel) -> WorkerProcess:
        """As ``Cluster``."""
        config = model.config
        on_line = functools.partial(log_line, worker_id=worker_id) if config.log_format == "json" else None
        options = process_options(config, worker_id)
        return await WorkerProcess.spawn(device.environment, options, self._command, on_line)

    async def keep(self, resize: Resize) -> None:
        """Nothing changes."""

    def status(self) -> None:
        """Goes without saying."""

    async def close(self) -> None:
        """Nothing is left."""
