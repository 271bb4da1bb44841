"""One device over all models and processes: what it has loaded, what it is to load, and how it goes over to that."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from safelight.config import Config
from safelight.errors import LoadError, NotEnoughMemory
from safelight.jobs import Job
from safelight.server.changes import Changes
from safelight.server.cluster import Cluster
from safelight.server.devices import Device
from safelight.server.load_state import LoadState
from safelight.server.loader import Loader
from safelight.server.metrics import Metrics
from safelight.server.model_instance import CalledOff, ModelInstance, ProcessDied
from safelight.server.served_model import ServedModel
from safelight.server.switch import Switch, plan_switch
from safelight.server.worker_state import SERVING, WorkerState

log = logging.getLogger(__name__)


class Worker:
    """``keep`` runs for as long as the server does, and brings about what ``want`` asks for."""

    def __init__(
        self,
        worker_id: int,
        device: Device,
        config: Config,
        model: ServedModel,
        changes: Changes,
        metrics: Metrics,
        cluster: Cluster,
    ) -> None:
        self.id = worker_id
        self.device = device
        self.loader = Loader(worker_id, device, config, changes, metrics, cluster)
        self.error: LoadError | None = None
        """Why the device is without a model."""
        self.switch: Switch | None = None
        """The one that goes on, or the last one."""
        self.current: ModelInstance | None = None
        self.wanted: ServedModel | None = model
        self._kept_since_s = time.monotonic()
        self._changes = changes
        self._metrics = metrics
        self._leaving: dict[ModelInstance, asyncio.Task[None]] = {}
        self._asked = asyncio.Event()
        self._is_stopping = False
        self._is_pausing = False
        self._is_to_reload = False
        self._is_to_be_renewed = False
        self._refused: ServedModel | None = None

    # --- what others ask --------------------------------------------------------------------------------------------

    def want(self, model: ServedModel | None) -> None:
        """Has the device load this model instead of the one that it has; ``None``: none, once its jobs are done."""
        if model is not None:
            self.loader.errors.pop(model.name, None)
        self.error, self.loader.last_load = None, LoadState()
        self.wanted, self._kept_since_s = model, time.monotonic()
        if (coming := self.coming) is not None and coming.model is not model:
            coming.call_off()
        self._asked.set()
        self._changes.announce()

    def reload(self) -> None:
        """Has the device load its model anew, once its jobs are done."""
        self._is_to_reload = True
        self._asked.set()

    def renew(self, model: ServedModel | None = None) -> None:
        """Has a new process take the place of the one that it has, with this model, or the same; or tries again."""
        model = model or self.wanted or self._refused
        if model is None:
            return
        self._is_to_be_renewed = True
        if model is not self.wanted:
            self.want(model)
        self._asked.set()
        self._changes.announce()

    @property
    def is_being_renewed(self) -> bool:
        """Until the new process is ready, or cannot be had, and the old one is gone."""
        return self._is_to_be_renewed or bool(self._leaving)

    def refuse(self, error: LoadError) -> None:
        """What is wanted cannot be had, until it is wanted again."""
        if self.wanted is not None:
            self.loader.errors[self.wanted.name] = error
            self._refused = self.wanted
        self.wanted, self.error = None, error
        log.error("worker %d cannot serve: %s", self.id, error.message)

    async def stop(self) -> None:
        """Ends all processes: politely those that are idle, at once those that load or have a job."""
        self._is_stopping = self.loader.is_closed = True
        self._changes.announce()
        await asyncio.gather(*(instance.stop() for instance in self.processes))
        await asyncio.gather(*self._leaving.values())
        self._asked.set()

    # --- lifetime ---------------------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Loads, follows, switches and replaces, until ``stop``. A failed load waits to be wanted again."""
        await asyncio.to_thread(self.loader.history.read)
        while not self._is_stopping:
            self._asked.clear()
            if self.current is not None and self.current.state is WorkerState.RESTARTING:
                await self._replace(self.current)
            elif self.current is None and self.wanted is None:
                await self._asked.wait()
            elif self.current is None:
                await self._load()
            elif self.wanted is None or self._is_to_reload:
                self._is_to_reload = False
                await self._unload(self.current)
            elif self.wanted is not self.current.model or self._is_to_be_renewed:
                await self._switch(self.current, self.wanted)
            else:
                await self._serve(self.current)
            self._changes.announce()

    async def _load(self) -> None:
        """What is wanted, onto an empty device."""
        assert self.wanted is not None
        self._is_to_reload = False  # whoever asked for that gets it now
        model, is_recovering = self.wanted, self.loader.is_recovering
        try:
            self.current = await self.loader.start(model)
            self._is_to_be_renewed = False
            if not is_recovering:
                self._kept_since_s = time.monotonic()
        except LoadError as error:
            self._is_to_be_renewed = False
            if self.wanted is model:
                self.refuse(error)
            self.loader.errors[model.name] = error
        except ProcessDied:
            await self._back_off()
        except CalledOff:
            pass

    async def _unload(self, instance: ModelInstance) -> None:
        await instance.retire()
        self.current = None

    async def _serve(self, instance: ModelInstance) -> None:
        """Until it dies, or something is asked."""
        waits = [asyncio.ensure_future(wait) for wait in (instance.ended(), self._asked.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _replace(self, instance: ModelInstance) -> None:
        await instance.ended()
        self.loader.died(instance)
        self.current = None
        await self._back_off()

    async def _back_off(self) -> None:
        delay_s = self.loader.back_off_s()
        self._is_pausing = True
        self._changes.announce()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._asked.wait()
        self._is_pausing = False

    # --- switch -----------------------------------------------------------------------------------------------------

    async def _switch(self, old: ModelInstance, model: ServedModel) -> None:
        """The old process serves until the new one is ready, or ends first; if it fails, it serves on or comes back."""
        self.switch = switch = Switch(old.model.id, model.id, keeps_serving=True, reason="its files are being checked")
        self._changes.announce()
        error: str | None = None
        try:
            await self._change(old, model, switch)
            self._kept_since_s = time.monotonic()
        except LoadError as failure:
            error = failure.message
            log.error("worker %d stays with %s: %s", self.id, old.model.name, error)
            if self.current is not old or model is not old.model:
                self.loader.errors[model.name] = failure
            if self.wanted is model:
                self.wanted = old.model
        except CalledOff:
            error = "it was called off"
        self.loader.trouble, self.loader.is_recovering = None, False  # the switch tells of it
        self._is_to_be_renewed = False
        switch.end(error)
        if model is not old.model:
            self._metrics.model_switches.labels("failed" if error else "done").inc()

    async def _change(self, old: ModelInstance, model: ServedModel, switch: Switch) -> None:
        await model.refresh()
        if self.device.is_placed:
            plan = False, "where it is placed, the device is free only once the old one has ended"
        else:
            plan = await asyncio.to_thread(plan_switch, old.model, model, self.device.name, old.load.memory)
        switch.keeps_serving, switch.reason = plan
        order = "serves until the next one is ready" if switch.keeps_serving else "ends first"
        what = "gets a new process of" if model is old.model else "goes to"
        log.info("worker %d %s %s, %s %s: %s", self.id, what, model.id, old.model.id, order, switch.reason)
        if switch.keeps_serving:
            try:
                self.current = await self.loader.start_surely(model)
                return self._let_leave(old)
            except NotEnoughMemory as error:
                switch.keeps_serving, switch.reason = False, f"both do not fit: {error.message}"
        await self._unload(old)
        if self.wanted is not model:
            raise CalledOff
        self.current = await self.loader.start_surely(model)

    def _let_leave(self, old: ModelInstance) -> None:
        """It does the jobs that it has; nobody waits for that."""
        leaving = asyncio.create_task(old.retire(), name=f"retire {old.model.name}")
        self._leaving[old] = leaving
        leaving.add_done_callback(lambda _: self._left(old))

    def _left(self, old: ModelInstance) -> None:
        del self._leaving[old]
        self._changes.announce()

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def state(self) -> WorkerState:
        """Of the process that serves; without one, of the one that comes."""
        if self._is_stopping:
            return WorkerState.DRAINING
        if self.shown is not None:
            return self.shown.state
        if self._is_pausing:
            return WorkerState.RESTARTING
        if self.error is not None:
            return WorkerState.FAILED
        return WorkerState.UNLOADED if self.wanted is None else WorkerState.STARTING

    @property
    def coming(self) -> ModelInstance | None:
        """The process that loads."""
        return self.loader.coming

    @property
    def shown(self) -> ModelInstance | None:
        """What people see of the device: the process that serves, else the one that comes, else the one that ended."""
        if self.current is None or self.current.state is WorkerState.RESTARTING:
            return self.coming or self.current
        return self.current

    @property
    def model(self) -> ServedModel | None:
        """The model that it has, or is getting."""
        return self.shown.model if self.shown else self.wanted

    @property
    def load(self) -> LoadState:
        """Of ``shown``, or the last one."""
        return self.shown.load if self.shown else self.loader.last_load

    @property
    def is_idle(self) -> bool:
        """Ready and without a job."""
        return self.state is WorkerState.READY

    @property
    def is_serving(self) -> bool:
        """Loaded and warm, with or without a job."""
        return self.state in SERVING

    @property
    def takes_jobs(self) -> bool:
        """Serves, or will for the next job: it has no model for want of jobs, or goes from one model to another."""
        if self._is_stopping or self.state is WorkerState.FAILED:
            return False
        if self.is_serving or self.state is WorkerState.UNLOADED:
            return True
        return self.loader.has_been_ready and not self.loader.is_recovering

    @property
    def is_settled(self) -> bool:
        """Has what is wanted, or nothing, or cannot get it: now is the time to want something else."""
        if self._is_stopping or self.coming is not None:
            return False
        if self.current is not None:
            return self.current.is_serving and self.current.model is self.wanted
        return self.wanted is None or self._is_pausing

    @property
    def kept_s(self) -> float:
        """Seconds for which the device has had its model, or tried to get it."""
        return time.monotonic() - self._kept_since_s

    def load_seconds(self, model: ServedModel) -> float | None:
        """What the last load of this model took here; ``None`` if there was none."""
        return self.loader.history.seconds(model.name, self.device.name)

    @property
    def instances(self) -> list[ModelInstance]:
        """Processes that have jobs, or may get some."""
        return [*([self.current] if self.current else []), *self._leaving]

    @property
    def processes(self) -> list[ModelInstance]:
        """``instances``, and the one that loads."""
        return [*self.instances, *([self.coming] if self.coming else [])]

    @property
    def jobs(self) -> list[Job]:
        """What its processes work on, oldest first; also jobs that are about to begin."""
        return [job for instance in self.instances for job in instance.jobs]

    @property
    def jobs_on_device(self) -> list[Job]:
        """Those of ``jobs`` that are not drawn yet."""
        return [job for instance in self.instances for job in instance.jobs_on_device]

    @property
    def component_bytes(self) -> dict[str, int]:
        """Bytes of the weights that it has or loads, by component."""
        return self.model.component_bytes if self.model else {}

    def cancel(self, job: Job) -> None:
        """Asks the process that has this job to stop it at its next step; its outcome says what became of it."""
        for instance in self.instances:
            instance.cancel(job)
