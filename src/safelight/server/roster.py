"""The workers of a cluster, as its devices come and go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from safelight.server.devices import Device
from safelight.server.worker import Worker

log = logging.getLogger(__name__)


class Roster:
    """Keeps ``workers`` as many as there are devices, which are all alike. Others hold the same list.

    ``hire`` makes and starts the worker of a device that came. One that is to leave has neither a job nor a model that
    is ready: what still serves after its device was counted out serves on.
    """

    def __init__(self, workers: list[Worker], hire: Callable[[int, Device], Worker]) -> None:
        self._workers = workers
        self._hire = hire
        self._leaving: set[asyncio.Task[None]] = set()

    def resize(self, devices: Sequence[Device]) -> None:
        """These are the devices now."""
        missing = len(devices) - len(self._workers)
        taken = {worker.device.name for worker in self._workers}
        free = [(index, device) for index, device in enumerate(devices) if device.name not in taken]
        for index, device in free[: max(missing, 0)]:
            log.info("worker %d joins: %s", index, device.name)
            self._workers.append(self._hire(index, device))
        idle = [worker for worker in reversed(self._workers) if not worker.is_serving and not worker.jobs]
        for worker in idle[: max(-missing, 0)]:
            log.info("worker %d leaves: there is one device less", worker.id)
            self._workers.remove(worker)
            leaving = asyncio.get_running_loop().create_task(worker.stop(), name=f"worker {worker.id} leaves")
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    async def settle(self) -> None:
        """Returns once those that leave are gone."""
        await asyncio.gather(*self._leaving, return_exceptions=True)
