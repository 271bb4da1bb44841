"""Starts the worker processes of one device, one after the other, and remembers how that went."""

from __future__ import annotations

import asyncio
import logging

from safelight.config import Config
from safelight.errors import LoadError
from safelight.server.changes import Changes
from safelight.server.cluster import Cluster
from safelight.server.devices import Device
from safelight.server.load_history import LoadHistory
from safelight.server.load_state import LoadState
from safelight.server.metrics import Metrics
from safelight.server.model_instance import CalledOff, ModelInstance, ProcessDied
from safelight.server.served_model import ServedModel

log = logging.getLogger(__name__)

BACK_OFF_S = (0.0, 1.0, 5.0, 15.0, 30.0)
"""Seconds before the next start after the first, second... death in a row; the last one is the circuit breaker's."""

_HEALTHY_AFTER_S = 30.0
_SURE_TRIES = 3


class Loader:
    """``coming`` is the process that loads now; ``errors`` say why models, by name, cannot be had here."""

    def __init__(
        self,
        worker_id: int,
        device: Device,
        config: Config,
        changes: Changes,
        metrics: Metrics,
        cluster: Cluster,
    ) -> None:
        self.coming: ModelInstance | None = None
        self.last_load = LoadState()
        self.errors: dict[str, LoadError] = {}
        self.trouble: str | None = None
        """What became of the last process that died, until one is ready."""
        self.restarts = 0
        self.has_been_ready = False
        self.is_recovering = False
        """Whether it loads since a process has died."""
        self.history = LoadHistory(config.data_dir)
        self.is_closed = False
        """Whether no process is to be started any more."""
        self._deaths_in_a_row = 0
        self._worker_id = worker_id
        self._device = device
        self._changes = changes
        self._metrics = metrics
        self._cluster = cluster

    async def start(self, model: ServedModel) -> ModelInstance:
        """A process that is ready. Raises ``LoadError``, ``ProcessDied`` or ``CalledOff``."""
        if self.is_closed:
            raise CalledOff
        worker_id, device = self._worker_id, self._device
        expected_s = self.history.seconds(model.name, device.name)
        instance = ModelInstance(worker_id, device, model, self._changes, self._metrics, self._cluster, expected_s)
        instance.follows_a_death = self._deaths_in_a_row > 0
        self.coming, self.last_load = instance, instance.load
        self._changes.announce()
        try:
            await instance.start()
        except (LoadError, OSError) as error:
            reason = error if isinstance(error, LoadError) else LoadError(f"no worker could be started: {error}")
            self.history.note(model.id, instance.load.seconds, reason.message)
            raise reason from error
        except ProcessDied:
            self.died(instance)
            raise
        finally:
            self.coming = None
        self._became_ready(instance)
        return instance

    async def start_surely(self, model: ServedModel) -> ModelInstance:
        """As ``start``; processes that die are replaced a few times, then that is a ``LoadError`` too."""
        for delay_s in BACK_OFF_S[:_SURE_TRIES]:
            try:
                return await self.start(model)
            except ProcessDied:
                log.warning("worker %d: %s while it loaded %s", self._worker_id, self.trouble, model.name)
                await asyncio.sleep(delay_s)
        raise LoadError(f"{self.trouble} while it loaded {model.id}, {_SURE_TRIES} times in a row")

    def back_off_s(self) -> float:
        """Seconds to wait before the next start, now that a process has died; ``trouble`` tells of them."""
        delay_s = BACK_OFF_S[min(self._deaths_in_a_row, len(BACK_OFF_S) - 1)]
        self._deaths_in_a_row += 1
        self.trouble = f"{self.trouble}, {self._deaths_in_a_row} in a row; the next one starts in {delay_s:.0f} s"
        log.warning("worker %d: %s", self._worker_id, self.trouble)
        return delay_s

    def died(self, instance: ModelInstance) -> None:
        """The process has ended by itself."""
        if instance.has_succeeded or instance.ready_s > _HEALTHY_AFTER_S:
            self._deaths_in_a_row = 0
        code = "" if instance.exit_code is None else f" (exit code {instance.exit_code})"
        self.trouble = f"the worker {instance.death_reason}{code}"
        self.is_recovering = True
        self.restarts += 1
        self._metrics.worker_restarts.labels(instance.death_reason.partition(":")[0]).inc()
        if instance.load.is_finished:
            self.history.lost(instance.model.id, self.trouble)
        else:
            self.history.note(instance.model.id, instance.load.seconds, self.trouble)

    def _became_ready(self, instance: ModelInstance) -> None:
        load, model, device = instance.load, instance.model, self._device.name
        self.errors.pop(model.name, None)
        self.trouble = None
        self.has_been_ready, self.is_recovering = True, False
        self.history.note(model.id, load.seconds)
        phases = ", ".join(f"{name} {value:.2f} s" for name, value in load.phase_seconds.items())
        log.info("worker %d ready on %s in %.2f s: %s", self._worker_id, device, load.seconds, phases)
        asyncio.get_running_loop().run_in_executor(None, self.history.record, model.name, device, load.seconds)
