"""One model on one device: a worker process from its start to its end, and the jobs that it has."""

from __future__ import annotations

import asyncio
import logging
import math
import time

from safelight.errors import LoadError, ProtocolError, error_from_code
from safelight.jobs import Job
from safelight.model_card import ModelCard
from safelight.protocol import (
    Cancel,
    Drawn,
    Generate,
    JobOutcome,
    JobProgress,
    LoadFailed,
    LoadProgress,
    Memory,
    Message,
    Ready,
    StepDone,
    Succeeded,
    Unfit,
    Warm,
    WorkerMessage,
)
from safelight.server.changes import Changes
from safelight.server.cluster import Cluster, EngineProcess
from safelight.server.devices import Device
from safelight.server.load_state import LoadState
from safelight.server.metrics import Metrics
from safelight.server.served_model import ServedModel
from safelight.server.watchdog import Watchdog
from safelight.server.worker_jobs import OnProgress, WorkerJobs, loss
from safelight.server.worker_orders import load_message
from safelight.server.worker_state import ALIVE, SERVING, WorkerState

log = logging.getLogger(__name__)


class ProcessDied(Exception):
    """The process ended by itself before it was ready: the next one may do better."""


class CalledOff(Exception):
    """The process was ended before it was ready."""


class ModelInstance:
    """``start`` loads it, ``retire`` ends it in peace. One that has ended by itself is ``restarting``."""

    def __init__(
        self,
        worker_id: int,
        device: Device,
        model: ServedModel,
        changes: Changes,
        metrics: Metrics,
        cluster: Cluster,
        expected_s: float | None = None,
    ) -> None:
        self.worker_id = worker_id
        self.device = device
        self.model = model
        self.state = WorkerState.STARTING
        self.load = LoadState(expected_s)
        self.death_reason = "died"
        self.exit_code: int | None = None
        self.node: str | None = None
        """The machine that it runs on, if it is another one."""
        self.has_succeeded = False
        """Whether it has made a picture."""
        self.has_had_jobs = False
        self.follows_a_death = False
        """Whether the process before it has died, and none has done well since."""
        self._changes = changes
        self._metrics = metrics
        self._cluster = cluster
        self._config = model.config
        self._jobs = WorkerJobs()
        self._watchdog = Watchdog(self._config.hang_timeout_s)
        self._card: ModelCard | None = None
        self._process: EngineProcess | None = None
        self._ready: Ready | None = None
        self._said_ready = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self._is_called_off = False
        self._ready_since_s = self._idle_since_s = math.inf

    # --- lifetime ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns once it is ready. Raises ``LoadError``, ``OSError``, ``ProcessDied`` or ``CalledOff``."""
        self._life = asyncio.create_task(self._live(), name=f"{self.model.name} on {self.device.name}")
        said_ready = asyncio.create_task(self._said_ready.wait())
        try:
            await asyncio.wait({self._life, said_ready}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            said_ready.cancel()
        if self._ready is not None and not self._life.done():
            return self._became_ready(self._ready)
        if self._is_called_off or self._life.cancelled():
            raise CalledOff
        raise self._life.exception() or ProcessDied

    async def ended(self) -> None:
        """Returns once the process is gone."""
        if self._life is not None:
            await asyncio.wait({self._life})

    async def retire(self) -> None:
        """Takes no more jobs, and ends when those that it has are done."""
        self._set_state(WorkerState.DRAINING)
        while self._jobs and not self._is_called_off:
            await self._changes.wider.wait()
        await self.stop()

    def call_off(self) -> None:
        """Ends a load; ``start`` raises ``CalledOff``."""
        self._is_called_off = True
        self._set_state(WorkerState.DRAINING)
        if self._process is not None:
            self._process.kill()
        elif self._life is not None:
            self._life.cancel()

    async def stop(self) -> None:
        """Ends it now: politely if it is idle, at once if it loads or has a job."""
        if self._ready is not None and not self._jobs and self._process is not None:
            self._is_called_off = True
            self._set_state(WorkerState.DRAINING)
            await self._process.stop(politely=True)
        else:
            self.call_off()
        await self.ended()

    async def _live(self) -> None:
        await self.model.refresh()
        self._card = self.model.card
        load = await asyncio.to_thread(load_message, self._config, self.device)
        process = await self._cluster.spawn(self.device, self.worker_id, self.model)
        log.info("worker %d started on %s", self.worker_id, self.device.name)
        self._process = process
        watch = asyncio.create_task(self._watch(), name=f"watch worker {self.worker_id}")
        try:
            process.send(load)
            await self._follow(process)
        finally:
            watch.cancel()
            # At once: no job may be given to a process that is about to end.
            self._set_state(WorkerState.DRAINING if self._is_called_off else WorkerState.RESTARTING)
            self.exit_code = await process.stop(politely=False)
            self._process = None
            if self.exit_code is None:
                self.death_reason = f"lost: {f'its node {self.node}' if self.node else 'its machine'} no longer answers"
            self._jobs.lose(loss(self.exit_code))
            self._changes.announce()

    async def _follow(self, process: EngineProcess) -> None:
        limit_s = self._config.load_timeout_s
        try:
            async with asyncio.timeout(limit_s) as deadline:
                while (message := await process.receive()) is not None:
                    self.node = process.node
                    self._handle(message)
                    if self._ready is not None:
                        deadline.reschedule(None)
        except ProtocolError:
            log.exception("worker %d sent a message that cannot be read; it is replaced", self.worker_id)
        except TimeoutError:
            await self.end_hung(f"did not finish loading within {limit_s:.0f} s")

    async def _watch(self) -> None:
        await self._watchdog.wait()
        silent_s, names = self._watchdog.limit_s, ", ".join(job.id for job in self._jobs)
        await self.end_hung(f"made no step of {names} for {silent_s:.0f} s")

    async def end_hung(self, what: str) -> None:
        """Asks for the stacks of all its threads in the log, then kills it."""
        if (process := self._process) is None:
            return
        log.error("worker %d %s; its stacks follow, then it is replaced", self.worker_id, what)
        self._set_state(WorkerState.RESTARTING)  # at once: no job may join
        self.death_reason = f"hung: it {what}"
        await process.dump_stacks()
        process.kill()

    # --- messages ---------------------------------------------------------------------------------------------------

    def _handle(self, message: WorkerMessage) -> None:
        match message:
            case LoadProgress():
                self.load.advance(message)
                self._set_state(WorkerState.WARMING if message.phase == "warmup" else WorkerState.LOADING)
            case Ready():
                self._ready = message
                self._said_ready.set()
            case Warm():
                self.load.warmed(message)
                self._changes.widest.announce()
            case Memory():
                self.load.memory = message
                self._changes.widest.announce()
            case LoadFailed(code, text):
                error = error_from_code(code, text)
                raise error if isinstance(error, LoadError) else LoadError(text)
            case _:
                self._handle_job(message)

    def _handle_job(self, message: JobProgress | JobOutcome) -> None:
        running = self._jobs.find(message.job_id, message.attempt)
        if running is None:
            if not isinstance(message, JobProgress):
                sentence = "worker %d: an outcome of %s came too late and was discarded"
                log.warning(sentence, self.worker_id, message.job_id)
                self._metrics.fenced.inc()
        elif isinstance(message, JobProgress):
            if isinstance(message, StepDone):
                self._watchdog.step_done(message.job_id, message.step)
            running.on_progress(message)
            if isinstance(message, Drawn):
                self._jobs.drawn(running.job)
        else:
            if isinstance(message, Unfit):
                log.error("worker %d is unfit: %s", self.worker_id, message.message)
                self.death_reason = f"unfit: {message.message}"
                self._set_state(WorkerState.RESTARTING)  # at once: it is about to exit
            self.has_succeeded |= isinstance(message, Succeeded)
            running.outcome.set_result(message)

    def _became_ready(self, ready: Ready) -> None:
        """In one go with what ``start`` returns to, so that nobody sees one that is ready and belongs to nobody."""
        self.load.finish(ready.phase_seconds, ready.batch_tokens, ready.fit)
        self._watchdog.warmed_up(ready.phase_seconds.get("warmup", 0.0))
        self._ready_since_s = self._idle_since_s = time.monotonic()
        self._set_state(WorkerState.READY)

    # --- jobs -------------------------------------------------------------------------------------------------------

    @property
    def is_serving(self) -> bool:
        """Loaded and warm, with or without a job, and takes more."""
        return self.state in SERVING

    @property
    def is_loading(self) -> bool:
        """On its way to ready."""
        return self.state in (WorkerState.STARTING, WorkerState.LOADING, WorkerState.WARMING)

    @property
    def ready_s(self) -> float:
        """Seconds since it became ready."""
        return time.monotonic() - self._ready_since_s

    @property
    def idle_s(self) -> float:
        """Seconds since it had a job, or became ready."""
        return time.monotonic() - self._idle_since_s

    @property
    def jobs(self) -> list[Job]:
        """What it works on, oldest first; also jobs that are about to begin."""
        return list(self._jobs)

    @property
    def jobs_on_device(self) -> list[Job]:
        """Those of ``jobs`` that are not drawn yet."""
        return self._jobs.on_device

    @property
    def is_open(self) -> bool:
        """Whether there is a job that it admits."""
        return self._card is not None and self.is_serving and self._jobs.is_open(self._card, self.load.batch_tokens)

    def admits(self, job: Job) -> bool:
        """Whether the job, which is for its model, may begin here now, alone or beside others."""
        if self._card is None or not self.is_serving:
            return False
        return self._jobs.admit(job, self._card, self.load.batch_tokens)

    def reserve(self, job: Job, *, is_alone: bool = False) -> None:
        """Keeps a place for a job that it admits, until ``release`` or its own end."""
        self._jobs.reserve(job, is_alone=is_alone)
        self.has_had_jobs = True
        self._set_state(WorkerState.BUSY)

    def holds(self, job: Job) -> bool:
        """Whether the job has a place, and the process still works."""
        return self.state in ALIVE and job in self.jobs

    def release(self, job: Job) -> None:
        """Gives the place back; does nothing if there is none."""
        self._jobs.release(job)
        self._idle_since_s = time.monotonic()
        if self.state is WorkerState.BUSY and not self._jobs:
            self._set_state(WorkerState.READY)
        else:
            self._changes.wider.announce()

    async def run(self, job: Job, order: Generate, on_progress: OnProgress) -> JobOutcome:
        """Runs a job that has a place to its outcome.

        Raises ``WorkerCrashed`` if the process dies with it, or hangs and is killed.
        """
        assert self._process is not None and self.holds(job)
        running = self._jobs.begin(job, on_progress)
        self._watchdog.begin(job.id, job.params)
        try:
            self._process.send(order)
            return await running.outcome
        finally:
            self._watchdog.end(job.id)

    def cancel(self, job: Job) -> None:
        """Asks the process to stop this job at its next step; its outcome says what became of it."""
        self.tell(job, Cancel(job.id))

    def tell(self, job: Job, message: Message) -> None:
        """Sends the process something about a job that it has."""
        if self._process is not None and job in self.jobs:
            self._process.send(message)

    def _set_state(self, state: WorkerState) -> None:
        before = self.state
        if before is not WorkerState.RESTARTING:  # which is its last
            self.state = state
        if self.state is before:
            self._changes.widest.announce()
        elif {self.state, before} == SERVING:  # a matter of its jobs
            self._changes.wider.announce()
        else:
            self._changes.announce()
