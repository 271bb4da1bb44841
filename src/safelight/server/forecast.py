"""When a job will have its turn, and its end, as far as that can be told."""

from __future__ import annotations

import math
from collections.abc import Sequence

from safelight.jobs import Job, JobStatus
from safelight.server.catalogue import Catalogue
from safelight.server.ledger import JobLedger
from safelight.server.pace import Paces
from safelight.server.placement import Placement
from safelight.server.served_model import ServedModel
from safelight.server.serving import Serving
from safelight.server.worker import Worker


class Forecast:
    """From what waits and runs, how fast jobs of each model are done, and how long its loads took."""

    def __init__(
        self,
        models: Catalogue,
        workers: Sequence[Worker],
        ledger: JobLedger,
        serving: Serving,
        placement: Placement,
        paces: Paces,
    ) -> None:
        self._models = models
        self._workers = workers
        self._ledger = ledger
        self._queue = ledger.queue
        self._serving = serving
        self._placement = placement
        self._paces = paces

    def position(self, job: Job) -> int | None:
        """How many jobs will be taken before it, at most; ``None`` if it does not wait."""
        ahead = self._queue.ahead(job)
        model = self._models.named(job.request.model)
        if ahead is None or model is None or self._placement.holders(model):
            return None if ahead is None else ahead.jobs
        worker = self._next_device()
        return ahead.jobs + (self._queue.count(worker.model.name) if worker and worker.model else 0)

    def eta_s(self, job: Job) -> float | None:
        """Seconds until the job will have ended; ``None`` before anything was measured that this can be told from."""
        pace = self._paces.of(job.request.model)
        if job.status is JobStatus.RUNNING:
            return pace.seconds(self._work_until_end(job))
        ahead = self._queue.ahead(job)
        before = (0.0 if ahead is None else ahead.work) + self._ledger.work_left(job.request.model)
        serving = self._serving.of(job.request.model)
        own_s = pace.seconds(before / max(len(serving), 1) + job.params.work)
        model = self._models.named(job.request.model)
        if serving or own_s is None or model is None:
            return own_s
        load_s = self._seconds_until_loaded(model)
        return None if load_s is None else load_s + own_s

    def remaining_s(self, worker: Worker) -> float | None:
        """Seconds that the jobs of a device will still take it; ``None`` while it is not known how fast they are."""
        seconds = [self._paces.of(job.request.model).seconds(job.work_left) for job in worker.jobs_on_device]
        return None if None in seconds else sum(each for each in seconds if each is not None)

    def retry_after_s(self, model: str) -> int:
        """Whole seconds after which a place may be free."""
        return min(max(math.ceil(self._paces.of(model).job_seconds / max(len(self._serving.of(model)), 1)), 1), 60)

    def _work_until_end(self, job: Job) -> float:
        """What a process does until then: jobs that share its steps get on as fast as it does, or end sooner, and each
        worker of a team does its part.
        """
        members = self._serving.holders(job)
        mates = members[0].jobs_on_device if members else []
        shared = sum(min(mate.work_left, job.work_left) for mate in (mates if job in mates else [job]))
        return shared / max(len(members), 1)

    def _seconds_until_loaded(self, model: ServedModel) -> float | None:
        """Of a model that no device serves: what other jobs have first, and a load as long as the last one."""
        if holders := self._placement.holders(model):
            coming = holders[0].coming
            is_it = coming is not None and coming.model is model
            return (
                coming.load.eta_s if coming is not None and is_it else self._placement.load_seconds(holders[0], model)
            )
        placed, wait_s = self._placement.place(model)
        device = placed if placed is not None else self._next_device()
        load_s = None if device is None else self._placement.load_seconds(device, model)
        if device is None or load_s is None:
            return None
        return self._seconds_until_free(device, wait_s) + load_s

    def _seconds_until_free(self, worker: Worker, wait_s: float) -> float:
        """What the device does first: the jobs that it has, and those that wait for its model, ``wait_s`` at most."""
        if worker.model is None:
            return 0.0
        name, pace = worker.model.name, self._paces.of(worker.model.name)
        running_s = pace.seconds(sum(job.work_left for job in worker.jobs)) or 0.0
        if not self._queue.count(name):
            return running_s
        waiting_s = pace.seconds(self._queue.work_for(name))
        bound_s = self._placement.wait_s if wait_s == math.inf else max(wait_s, 0.0)
        return running_s + (bound_s if waiting_s is None else min(bound_s, waiting_s))

    def _next_device(self) -> Worker | None:
        """The one that will be free for another model first."""

        def waiting(worker: Worker) -> int:
            return self._queue.count(worker.model.name) if worker.model else 0

        return min(self._workers, key=waiting, default=None)
