"""``Front``: everything that the front process owns, from the first worker to the last."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from safelight import __version__
from safelight.config import Config
from safelight.errors import LoadError, ModelNotFound, Unavailable
from safelight.jobs import Job, JobStatus
from safelight.logs import about
from safelight.model_card import ModelCard
from safelight.server.changes import Changes
from safelight.server.devices import resolve_devices
from safelight.server.dispatcher import Dispatcher
from safelight.server.janitor import tend
from safelight.server.ledger import JobLedger
from safelight.server.links import PictureLinks
from safelight.server.lora_shelf import LoraShelf
from safelight.server.metrics import Metrics, Reading
from safelight.server.prediction import prediction
from safelight.server.queue import JobQueue
from safelight.server.rate_limit import RateLimit
from safelight.server.secret_file import read_or_make_key
from safelight.server.served_model import LISTED_ALIASES, ServedModel
from safelight.server.status import (
    ServerStatus,
    device_memory,
    load_seconds,
    overall_status,
    worker_states,
    worker_status,
)
from safelight.server.store import JobStore
from safelight.server.webhooks import Webhooks
from safelight.server.worker import Worker
from safelight.server.worker_process import WORKER_COMMAND
from safelight.tracing import NO_TRACING, Tracing

log = logging.getLogger(__name__)

_DEFECT_PAUSE_S = 1.0


class Front:
    """Made on a running loop; ``start`` returns at once, the workers load behind it. The store is its maker's."""

    def __init__(
        self,
        config: Config,
        store: JobStore,
        worker_command: Sequence[str] = WORKER_COMMAND,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self.config = config
        self.store = store
        self.tracing = tracing
        self.changes = Changes()
        self.metrics = Metrics(self._gauges)
        self.model = ServedModel(
            config.model,
            config.pulled_models,
            base_model=config.base_model,
            has_aliases=config.model_aliases != "off",
        )
        self.loras = LoraShelf(config.adapters_dir, self.model)
        self.workers = [
            Worker(index, device, config, self.model, self.changes, self.metrics, worker_command)
            for index, device in enumerate(resolve_devices(config.device))
        ]
        self.queue = JobQueue(config.queue_limit, config.queue_work_limit)
        self.ledger = JobLedger(self.queue, store, self.changes, self.metrics)
        self.dispatcher = Dispatcher(self.ledger, self.workers, self.changes, self.metrics, tracing)
        self.is_draining = False
        self.is_stopped = False
        self.links = PictureLinks(config.data_dir, config.link_ttl_s)
        self.rate_limit = RateLimit(config.rate_limit)
        self.webhooks = Webhooks(
            store,
            self.dispatcher,
            self.metrics,
            self.show,
            read_or_make_key(config.data_dir / "webhook-key"),
            may_be_private=config.private_webhooks,
        )
        self._started_s = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begins to load. What is wrong with the model's files becomes a status, not an exception."""
        with contextlib.suppress(LoadError):  # the workers will say so
            await self.model.refresh()
        for worker in self.workers:
            with about(worker_id=worker.id):
                self._start(worker.keep, f"keep worker {worker.id}")
        self._start(self._serve, "serve")

    async def _serve(self) -> None:
        """What an earlier server accepted comes first."""
        if count := await self.ledger.restore():
            log.info("%d jobs go on that an earlier server accepted", count)
        self._start(self.dispatcher.watch, "watch")
        for job in self.ledger:
            self.webhooks.accompany(job)
        self._start(self.webhooks.run, "tell webhooks")
        self._start(self.dispatcher.serve, "hand out jobs")
        limit_bytes = self.config.result_limit_mb * 1_000_000
        self._start(functools.partial(tend, self.store, self.config.result_ttl_s, limit_bytes), "tend the store")

    def _start(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(again_after_defects(work, name), name=name))

    def load(self, model_id: str) -> None:
        """Tries again to load after a failure. Raises ``ModelNotFound`` for any other model than the server's."""
        if model_id not in (self.config.model, *(entry["id"] for entry in self.model_list())):
            raise ModelNotFound(f"the model {model_id!r} is not served here; {self.config.model!r} is", param="model")
        for worker in self.workers:
            worker.retry()

    def begin_drain(self) -> None:
        """From now on not ready, and no new work; ``drain`` does the rest."""
        self.is_draining = True
        self.changes.announce()

    async def drain(self) -> None:
        """Running jobs finish within the grace period or wait again; then the workers end. Idempotent."""
        self.begin_drain()
        await self.dispatcher.drain(self.config.grace_period_s)
        await self.stop()

    async def stop(self) -> None:
        """Ends the workers now, whatever they do; their jobs are kept."""
        self.begin_drain()
        self.dispatcher.close()
        if self.is_stopped:
            return
        await asyncio.gather(*(worker.stop() for worker in self.workers))
        await self.dispatcher.settle()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.webhooks.stop()
        self.is_stopped = True
        self.changes.announce()

    @property
    def state(self) -> ServerStatus:
        state = overall_status(self.workers, is_draining=self.is_draining)
        return ServerStatus.DEGRADED if state is ServerStatus.READY and self.store.trouble else state

    @property
    def is_ready(self) -> bool:
        """A warm worker takes jobs, they can be stored, and the server does not drain."""
        return self.state in (ServerStatus.READY, ServerStatus.DEGRADED) and self.store.trouble is None

    @property
    def has_started(self) -> bool:
        """A warm-up image was made since this process began."""
        return any(worker.has_been_ready for worker in self.workers)

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._started_s

    def status(self) -> dict[str, Any]:
        """The body of ``/v1/status``."""
        return {
            "status": self.state.value,
            "version": __version__,
            "uptime_s": round(self.uptime_s, 2),
            "model": self.config.model,
            "queue": {
                "waiting": self.ledger.count(JobStatus.QUEUED),
                "running": self.ledger.count(JobStatus.RUNNING),
                "limit": self.queue.limit,
            },
            "images_per_min": round(self.metrics.throughput.images_per_min, 2),
            "storage": {"error": self.store.trouble.message if self.store.trouble else None},
            "workers": [worker_status(worker) for worker in self.workers],
        }

    def show(self, job: Job, base_url: str) -> dict[str, Any]:
        """A job as the job API has it; addresses begin with ``base_url``."""
        output = [base_url + self.links.path(job.id, index) for index in range(job.params.num_images)]
        position, eta_s = self.dispatcher.position(job), self.dispatcher.eta_s(job)
        return prediction(job, self.model.name, base_url, output, position, eta_s)

    def _gauges(self) -> dict[str, Reading]:
        return {
            "ready": self.is_ready,
            "requests_waiting": self.ledger.count(JobStatus.QUEUED),
            "requests_running": self.ledger.count(JobStatus.RUNNING),
            "queue_limit": self.queue.limit,
            "queue_oldest_seconds": self.ledger.longest_wait_s,
            "queue_work": self.queue.work,
            "workers": len(self.workers),
            "workers_ready": sum(worker.is_serving for worker in self.workers),
            "worker_state": worker_states(self.workers),
            "load_seconds": load_seconds(self.workers),
            **device_memory(self.workers),
            "storage_ok": self.store.trouble is None,
            "uptime_seconds": self.uptime_s,
            "build_info": {(__version__, self.model.name): 1},
        }

    def model_list(self) -> list[dict[str, Any]]:
        """Entries of ``/v1/models``: what OpenAI's list has, and what the model can do. Empty if it is unreadable."""
        try:
            card = self.model.card
        except Unavailable:
            return []
        names = [card.id, *(LISTED_ALIASES if self.config.model_aliases == "list" else ())]
        return [
            {"id": name, "object": "model", "created": 0, "owned_by": "safelight", **_abilities(card)} for name in names
        ]


async def again_after_defects(work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
    """What the server lives by may fail through a defect of ours, but not stay away."""
    while True:
        try:
            return await work()
        except Exception:
            log.exception("%s failed; it starts again", name)
            await asyncio.sleep(_DEFECT_PAUSE_S)


def _abilities(card: ModelCard) -> dict[str, Any]:
    return {
        "title": card.title,
        "description": card.description,
        "tasks": [task.value for task in card.tasks],
        "family": card.family.value,
        "default_size": f"{card.default_width}x{card.default_height}",
        "size_multiple": card.size_multiple,
        "min_size": card.min_size,
        "max_size": card.max_size,
        "default_num_inference_steps": card.default_num_inference_steps,
        "max_num_inference_steps": card.max_num_inference_steps,
        "default_guidance_scale": card.default_guidance_scale,
        "max_guidance_scale": card.max_guidance_scale,
        "max_sequence_length": card.max_sequence_length,
        "examples": card.examples,
        "vocabulary": None if card.vocabulary is None else msgspec.to_builtins(card.vocabulary),
    }
