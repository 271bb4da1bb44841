"""``Front``: everything that the front process owns, from the first worker to the last."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from safelight import __version__
from safelight.config import Config
from safelight.jobs import Job, JobStatus
from safelight.logs import about
from safelight.server.catalogue import Catalogue
from safelight.server.changes import Changes
from safelight.server.cluster import Cluster
from safelight.server.devices import Device
from safelight.server.dispatcher import Dispatcher
from safelight.server.fleet import local_cluster, make_workers, refuse_what_does_not_fit
from safelight.server.janitor import tend
from safelight.server.ledger import JobLedger
from safelight.server.links import PictureLinks
from safelight.server.lora_shelf import LoraShelves
from safelight.server.metrics import Metrics, Reading
from safelight.server.model_status import model_status, models_loaded
from safelight.server.prediction import prediction
from safelight.server.queue import JobQueue
from safelight.server.rate_limit import RateLimit
from safelight.server.rollout import Rollout
from safelight.server.roster import Roster
from safelight.server.secret_file import read_or_make_key
from safelight.server.served_model import ServedModel
from safelight.server.status import (
    ServerStatus,
    device_memory,
    labels_of,
    load_seconds,
    overall_status,
    worker_states,
    worker_status,
)
from safelight.server.status_feed import StatusFeed
from safelight.server.store import JobStore
from safelight.server.team_choice import OFF, TeamChoice
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
        cluster: Cluster | None = None,
    ) -> None:
        self.config = config
        self.store = store
        self.tracing = tracing
        self.changes = Changes()
        """Of whatever people see: also of how far a job is."""
        self.moves = Changes(self.changes)
        """Of what may let a job begin or end: one came, a place is free."""
        self.device_changes = Changes(self.moves)
        """Of which device has which model, or is to have it."""
        self.metrics = Metrics(self._gauges)
        self.models = Catalogue(config)
        self.loras = LoraShelves(config.adapters_dir)
        self.cluster = cluster or local_cluster(config, worker_command)
        self.workers = make_workers(config, self.models, self.device_changes, self.metrics, self.cluster)
        self.roster = Roster(self.workers, self._hire)
        self.queue = JobQueue(config.queue_limit, config.queue_work_limit)
        self.ledger = JobLedger(self.queue, store, self.moves, self.metrics)
        sharing = OFF if config.cluster else config.sequence_parallel
        teams = TeamChoice(sharing, self.workers, self.queue, config.data_dir / "teams")
        self.dispatcher = Dispatcher(
            self.ledger,
            self.models,
            self.workers,
            self.device_changes,
            self.metrics,
            config.model_wait_s,
            teams,
            tracing,
        )
        self.placement = self.dispatcher.placement
        self.forecast = self.dispatcher.forecast
        self.rollout = Rollout(self.workers, self.device_changes, self.metrics)
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
        self.status_feed = StatusFeed(self.changes, self.status, lambda: self.is_stopped)
        self._started_s = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begins to load. What is wrong with a model's files becomes a status, not an exception."""
        await self.models.refresh()
        if self.config.workers > 1 and not self.config.cluster:
            refuse_what_does_not_fit(self.workers)
        for worker in self.workers:
            self._keep(worker)
        self._start(functools.partial(self.cluster.keep, self.roster.resize), "follow the cluster")
        self._start(self._serve, "serve")

    async def _serve(self) -> None:
        """What an earlier server accepted comes first."""
        if count := await self.ledger.restore(self.models.resolved):
            log.info("%d jobs go on that an earlier server accepted", count)
        self._start(self.dispatcher.watch, "watch")
        for job in self.ledger:
            self.webhooks.accompany(job)
        self._start(self.webhooks.run, "tell webhooks")
        self._start(self.dispatcher.serve, "hand out jobs")
        self._start(self.placement.run, "place models")
        self._start(self.rollout.run, "renew workers")
        limit_bytes = self.config.result_limit_mb * 1_000_000
        self._start(functools.partial(tend, self.store, self.config.result_ttl_s, limit_bytes), "tend the store")

    def _hire(self, worker_id: int, device: Device) -> Worker:
        worker = Worker(worker_id, device, self.config, self.model, self.device_changes, self.metrics, self.cluster)
        self._keep(worker)
        self.device_changes.announce()
        return worker

    def _keep(self, worker: Worker) -> None:
        with about(worker_id=worker.id):
            self._start(worker.keep, f"keep worker {worker.id}")

    def _start(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(again_after_defects(work, name), name=name))

    @property
    def model(self) -> ServedModel:
        """The default: what requests mean that name none."""
        return self.models.default

    def begin_drain(self) -> None:
        """From now on not ready, and no new work; ``drain`` does the rest."""
        self.is_draining = True
        self.rollout.call_off()
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
        await asyncio.gather(*(worker.stop() for worker in self.workers), self.roster.settle())
        await self.dispatcher.settle()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.webhooks.stop()
        await self.cluster.close()
        self.is_stopped = True
        self.changes.announce()

    @property
    def state(self) -> ServerStatus:
        state = overall_status(self.workers, is_draining=self.is_draining)
        has_trouble = self.store.trouble or (self.cluster.status() or {}).get("error")
        return ServerStatus.DEGRADED if state is ServerStatus.READY and has_trouble else state

    @property
    def is_ready(self) -> bool:
        """A device takes jobs, they can be stored, and the server does not drain. ``Worker.takes_jobs`` says which."""
        return self.state in (ServerStatus.READY, ServerStatus.DEGRADED) and self.store.trouble is None

    def is_model_ready(self, model: ServedModel) -> bool:
        """As ``is_ready``, by a device that has this model."""
        instances = (instance for worker in self.workers for instance in worker.instances)
        return self.is_ready and any(each.model is model and each.is_serving for each in instances)

    @property
    def has_started(self) -> bool:
        """A warm-up image was made since this process began."""
        return any(worker.loader.has_been_ready for worker in self.workers)

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self._started_s

    def status(self) -> dict[str, Any]:
        """The body of ``/v1/status``."""
        return {
            "status": self.state.value,
            "version": __version__,
            "uptime_s": round(self.uptime_s, 2),
            "model": self.model.name,
            "models": [model_status(model, self.workers, self.queue) for model in self.models],
            "queue": {
                "waiting": self.ledger.count(JobStatus.QUEUED),
                "running": self.ledger.count(JobStatus.RUNNING),
                "limit": self.queue.limit,
            },
            "images_per_min": round(self.metrics.throughput.images_per_min, 2),
            "storage": {"error": self.store.trouble.message if self.store.trouble else None},
            "cluster": self.cluster.status(),
            "workers": [worker_status(worker, self.forecast.remaining_s(worker)) for worker in self.workers],
            "rollout": self.rollout.as_json(),
        }

    def show(self, job: Job, base_url: str) -> dict[str, Any]:
        """A job as the job API has it; addresses begin with ``base_url``."""
        output = [base_url + self.links.path(job.id, index) for index in range(job.params.num_images)]
        return prediction(
            job, self.models.id_of(job.request), base_url, output, self.forecast.position(job), self.forecast.eta_s(job)
        )

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
            "worker_jobs": {labels_of(worker): len(worker.jobs) for worker in self.workers},
            "worker_remaining_seconds": {
                labels_of(worker): self.forecast.remaining_s(worker) or 0.0 for worker in self.workers
            },
            "load_seconds": load_seconds(self.workers),
            **device_memory(self.workers),
            "storage_ok": self.store.trouble is None,
            "uptime_seconds": self.uptime_s,
            "model_requests_waiting": {(model.name,): self.queue.count(model.name) for model in self.models},
            "model_workers": models_loaded(self.models, self.workers),
            "build_info": {(__version__, model.name): 1 for model in self.models},
        }


async def again_after_defects(work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
    """What the server lives by may fail through a defect of ours, but not stay away."""
    while True:
        try:
            return await work()
        except Exception:
            log.exception("%s failed; it starts again", name)
            await asyncio.sleep(_DEFECT_PAUSE_S)
