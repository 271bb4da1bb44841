"""The front's view of one device: a worker that is started, loaded, given jobs and replaced when it dies."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from enum import StrEnum

from safelight.config import Config
from safelight.errors import LoadError, ProtocolError, SafelightError, error_from_code
from safelight.jobs import Job
from safelight.model_card import ModelCard
from safelight.protocol import (
    Cancel,
    Cancelled,
    Drawn,
    Failed,
    Generate,
    JobOutcome,
    JobProgress,
    LoadFailed,
    LoadProgress,
    Memory,
    Preview,
    Ready,
    StepDone,
    Succeeded,
    Unfit,
    Warm,
    WorkerMessage,
)
from safelight.server.changes import Changes
from safelight.server.devices import Device
from safelight.server.load_history import LoadHistory
from safelight.server.load_state import LoadState
from safelight.server.metrics import Metrics
from safelight.server.served_model import ServedModel
from safelight.server.watchdog import Watchdog
from safelight.server.worker_jobs import OnProgress, WorkerJobs
from safelight.server.worker_orders import load_message, process_options
from safelight.server.worker_process import WORKER_COMMAND, WorkerProcess

log = logging.getLogger(__name__)

_BACK_OFF_S = (0.0, 1.0, 5.0, 15.0, 30.0)
"""Seconds before the next start after the first, second... death in a row; the last one is the circuit breaker's."""

_HEALTHY_AFTER_S = 30.0


class WorkerState(StrEnum):
    """Where a worker stands."""

    STARTING = "starting"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    BUSY = "busy"
    FAILED = "failed"
    RESTARTING = "restarting"
    DRAINING = "draining"


class Worker:
    """One device over all generations of its process. ``keep`` runs for as long as the server does."""

    def __init__(
        self,
        worker_id: int,
        device: Device,
        config: Config,
        model: ServedModel,
        changes: Changes,
        metrics: Metrics,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        self.id = worker_id
        self.device = device
        self.state = WorkerState.STARTING
        self.load = LoadState()
        self.error: LoadError | None = None
        self.trouble: str | None = None
        self.has_been_ready = False
        self.restarts = 0
        self._config = config
        self._model = model
        self._changes = changes
        self._metrics = metrics
        self._command = command
        self.history = LoadHistory(config.data_dir)
        self._process: WorkerProcess | None = None
        self._card: ModelCard | None = None
        self._jobs = WorkerJobs()
        self._retry = asyncio.Event()
        self._watchdog = Watchdog(config.hang_timeout_s)
        self._deaths_in_a_row = 0
        self._ready_since_s = 0.0
        self._death_reason = "died"

    # --- lifetime ---------------------------------------------------------------------------------------------------

    async def keep(self) -> None:
        """Starts, follows and replaces the process, until ``stop``. A failed load waits for ``retry``."""
        while not self._is_stopping:
            try:
                await self._load_and_serve()
                if not self._is_stopping:
                    await self._back_off()
            except (LoadError, OSError) as error:
                self._fail(error if isinstance(error, LoadError) else LoadError(f"no worker could be started: {error}"))
                await self._retry.wait()
                self._retry.clear()

    def retry(self) -> None:
        """Tries a failed load again; does nothing in any other state."""
        if self.state is WorkerState.FAILED:
            self.error = None
            self.load = LoadState()
            self._set_state(WorkerState.STARTING)
            self._retry.set()

    async def stop(self) -> None:
        """Ends the process: politely if it is idle, at once if it loads or has a job."""
        was_idle = self.is_idle
        self._set_state(WorkerState.DRAINING)
        if self._process is not None:
            await self._process.stop(politely=was_idle)

    async def _load_and_serve(self) -> None:
        self.error = None
        self._death_reason = "died"
        expected_s = await asyncio.to_thread(self.history.seconds, self._model.name, self.device.name)
        self.load = LoadState(expected_s)
        self._set_state(WorkerState.STARTING)
        await self._model.refresh()
        self._card = self._model.card
        load = await asyncio.to_thread(load_message, self._config, self.device)
        relay_as = self.id if self._config.log_format == "json" else None
        process = await WorkerProcess.spawn(
            self.device.environment, process_options(self._config, self.id), self._command, relay_as
        )
        log.info("worker %d started on %s, pid %d", self.id, self.device.name, process.pid)
        self._process = process
        watch = asyncio.create_task(self._watch(process), name=f"watch worker {self.id}")
        try:
            process.send(load)
            await self._follow(process)
        finally:
            watch.cancel()
            exit_code = await process.stop(politely=False)
            self._process = None
            self._jobs.lose(f"the worker died while it made the image (exit code {exit_code}); ask again")
        self.trouble = f"the worker {self._death_reason} (exit code {exit_code})"
        if self.load.is_finished:
            self.history.lost(self.trouble)
        else:
            self.history.note(self.load.seconds, self.trouble)

    async def _follow(self, process: WorkerProcess) -> None:
        try:
            async with asyncio.timeout(self._config.load_timeout_s) as deadline:
                while (message := await process.receive()) is not None:
                    self._handle(message)
                    if self.load.is_finished:
                        deadline.reschedule(None)
        except ProtocolError:
            log.exception("worker %d sent a message that cannot be read; it is replaced", self.id)
        except TimeoutError:
            await self._end_hung(process, f"did not finish loading within {self._config.load_timeout_s:.0f} s")
        self._set_state(WorkerState.RESTARTING)  # at once: no job may be given to a process that is about to end

    async def _back_off(self) -> None:
        self.restarts += 1
        self._metrics.worker_restarts.labels(self._death_reason.partition(":")[0]).inc()
        if self.load.is_finished and time.monotonic() - self._ready_since_s > _HEALTHY_AFTER_S:
            self._deaths_in_a_row = 0
        delay_s = _BACK_OFF_S[min(self._deaths_in_a_row, len(_BACK_OFF_S) - 1)]
        self._deaths_in_a_row += 1
        self.trouble = f"{self.trouble}, {self._deaths_in_a_row} in a row; the next one starts in {delay_s:.0f} s"
        log.warning("worker %d: %s", self.id, self.trouble)
        self._set_state(WorkerState.RESTARTING)
        await asyncio.sleep(delay_s)

    async def _watch(self, process: WorkerProcess) -> None:
        await self._watchdog.wait()
        silent_s, names = self._watchdog.limit_s, ", ".join(job.id for job in self._jobs)
        await self._end_hung(process, f"made no step of {names} for {silent_s:.0f} s")

    async def _end_hung(self, process: WorkerProcess, what: str) -> None:
        """Asks for the stacks of all its threads in the log, then kills it."""
        log.error("worker %d %s; its stacks follow, then it is replaced", self.id, what)
        self._set_state(WorkerState.RESTARTING)  # at once: no job may join
        self._death_reason = f"hung: it {what}"
        await process.dump_stacks()
        process.kill()

    def _fail(self, error: LoadError) -> None:
        log.error("worker %d cannot serve: %s", self.id, error.message)
        self.error = error
        self.history.note(self.load.seconds, error.message)
        self._set_state(WorkerState.FAILED)

    # --- messages ---------------------------------------------------------------------------------------------------

    def _handle(self, message: WorkerMessage) -> None:
        match message:
            case LoadProgress():
                self.load.advance(message)
                self._set_state(WorkerState.WARMING if message.phase == "warmup" else WorkerState.LOADING)
            case Ready():
                self._became_ready(message)
            case Warm():
                self.load.warmed(message)
                self._changes.announce()
            case Memory():
                self.load.memory = message
                self._changes.announce()
            case LoadFailed(code, text):
                error = error_from_code(code, text)
                raise error if isinstance(error, LoadError) else LoadError(text)
            case StepDone() | Preview() | Drawn() | Succeeded() | Failed() | Cancelled() | Unfit():
                self._handle_job(message)

    def _handle_job(self, message: JobProgress | JobOutcome) -> None:
        running = self._jobs.find(message.job_id, message.attempt)
        if running is None:
            if not isinstance(message, JobProgress):
                log.warning("worker %d: an outcome of %s came too late and was discarded", self.id, message.job_id)
                self._metrics.fenced.inc()
        elif isinstance(message, JobProgress):
            if isinstance(message, StepDone):
                self._watchdog.step_done(message.job_id, message.step)
            running.on_progress(message)
            if isinstance(message, Drawn):
                self._jobs.drawn(running.job)
        else:
            self._judge(message)
            running.outcome.set_result(message)

    def _judge(self, outcome: JobOutcome) -> None:
        if isinstance(outcome, Succeeded):
            self._deaths_in_a_row, self.trouble = 0, None
        elif isinstance(outcome, Unfit):
            log.error("worker %d is unfit: %s", self.id, outcome.message)
            self._death_reason = f"unfit: {outcome.message}"
            self._set_state(WorkerState.RESTARTING)  # at once: it is about to exit

    def _became_ready(self, ready: Ready) -> None:
        phase_seconds = ready.phase_seconds
        self.load.finish(phase_seconds, ready.batch_tokens)
        self.history.note(self.load.seconds)
        self.has_been_ready = True
        self._ready_since_s = time.monotonic()
        self.trouble = None
        self._watchdog.warmed_up(phase_seconds.get("warmup", 0.0))
        phases = ", ".join(f"{name} {value:.2f} s" for name, value in phase_seconds.items())
        log.info("worker %d ready on %s in %.2f s: %s", self.id, self.device.name, self.load.seconds, phases)
        self._set_state(WorkerState.READY)
        asyncio.get_running_loop().run_in_executor(
            None, self.history.record, self._model.name, self.device.name, self.load.seconds
        )

    # --- jobs -------------------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Ready and without a job."""
        return self.state is WorkerState.READY

    @property
    def is_serving(self) -> bool:
        """Loaded and warm, with or without a job."""
        return self.state in (WorkerState.READY, WorkerState.BUSY)

    @property
    def component_bytes(self) -> dict[str, int]:
        """Bytes of the weights that it loads, by component."""
        return self._model.component_bytes

    @property
    def jobs(self) -> list[Job]:
        """What it works on, oldest first; also jobs that are about to begin."""
        return list(self._jobs)

    @property
    def jobs_on_device(self) -> list[Job]:
        """Those of ``jobs`` that are not drawn yet."""
        return self._jobs.on_device

    def admits(self, job: Job) -> bool:
        """Whether the job may begin here now, alone or beside others."""
        if self._card is None or not self.is_serving:
            return False
        return self._jobs.admit(job, self._card, self.load.batch_tokens)

    def reserve(self, job: Job) -> None:
        """Keeps a place for a job that it admits, until ``release`` or its own end."""
        self._jobs.reserve(job)
        self._set_state(WorkerState.BUSY)

    def holds(self, job: Job) -> bool:
        """Whether the job has a place, and the process that it was meant for still serves."""
        return self.is_serving and job in self.jobs

    def release(self, job: Job) -> None:
        """Gives the place back; does nothing if there is none."""
        self._jobs.release(job)
        if self.state is WorkerState.BUSY and not self._jobs:
            self._set_state(WorkerState.READY)
        else:
            self._changes.announce()

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
        """Asks the worker to stop this job at its next step; its outcome says what became of it."""
        if self._process is not None and job in self.jobs:
            self._process.send(Cancel(job.id))

    @property
    def _is_stopping(self) -> bool:
        return self.state is WorkerState.DRAINING

    def _set_state(self, state: WorkerState) -> None:
        if not self._is_stopping:
            self.state = state
        self._changes.announce()


def load_failure(workers: Sequence[Worker]) -> SafelightError | None:
    """Why no worker will ever be ready by itself, or ``None`` while one still may."""
    errors = [worker.error for worker in workers if worker.state is WorkerState.FAILED]
    return errors[0] if len(errors) == len(workers) and errors else None
