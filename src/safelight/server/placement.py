"""Which device is to have which model: the jobs that wait decide, and operators."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence

from safelight.errors import InvalidValue, LoadError, SafelightError
from safelight.server.catalogue import Catalogue
from safelight.server.changes import Changes
from safelight.server.pace import Paces
from safelight.server.queue import JobQueue
from safelight.server.remembered import Remembered
from safelight.server.served_model import ServedModel
from safelight.server.worker import Worker

_LOOK_S = 0.05


class Placement:
    """A model that jobs wait for gets a device that has nothing better to do. Jobs of the model that a device has go
    first, but for ``wait_s`` only: then the model that has waited longest comes, and is kept as long.
    """

    def __init__(
        self,
        models: Catalogue,
        workers: Sequence[Worker],
        queue: JobQueue,
        changes: Changes,
        paces: Paces,
        wait_s: float,
    ) -> None:
        self.wait_s = wait_s
        self._models = models
        self._workers = workers
        self._queue = queue
        self._changes = changes
        self._paces = paces
        self.holders = Remembered(changes, self._find_holders)
        """Devices that have a model or are getting it, and are not to let go of it."""
        self.failure = Remembered(changes, self._find_failure)
        """Why no device will ever have a model by itself, or ``None`` while one still may."""
        self._takers = Remembered(changes, self._find_takers)
        self._showing = Remembered(changes, self._find_showing)
        self._is_coming = Remembered(changes, self._find_whether_coming)

    async def run(self) -> None:
        """Decides soon after something changed, or a time is over, for ever."""
        moves = self._changes.wider
        while True:
            seen, due_s = moves.count, self.settle()
            await asyncio.sleep(_LOOK_S)  # many changes at once are looked at together
            if moves.count == seen:
                await moves.wait(None if due_s == math.inf else max(due_s - _LOOK_S, 0.0))

    def settle(self) -> float:
        """What is to be done now; seconds until there may be more to do though nothing changes."""
        due_s = math.inf
        for model in self._asked_for():
            if self._is_coming(model):
                continue
            worker, wait_s = self.place(model)
            if worker is not None and wait_s <= 0:
                worker.want(model)
            due_s = min(due_s, wait_s if wait_s > 0 else math.inf)
        unloading = (model for model in self._models if model.config.idle_unload_s)
        return min([due_s, *(self._unload_if_idle(worker) for model in unloading for worker in self._showing(model))])

    def _asked_for(self) -> list[ServedModel]:
        """Pinned models that no device has; then those that jobs wait for, the longest wait first."""
        pinned = [model for model in self._models if model.is_pinned and not self.holders(model)]
        waiting = [model for model in self._models if model not in pinned and self._queue.count(model.name)]
        return pinned + sorted(waiting, key=lambda model: self._queue.waiting_since_s(model.name) or 0.0)

    def place(self, model: ServedModel) -> tuple[Worker | None, float]:
        """The device that is to have it next, and in how many seconds; ``None`` and infinity if there is none."""
        is_served = bool(self.holders(model))
        waits = [
            (self._seconds_until_free(worker, model, is_served=is_served), len(worker.jobs), worker.id, worker)
            for worker in self._takers(model)
        ]
        seconds, _, _, worker = min(waits, default=(math.inf, 0, 0, None))
        return worker, seconds

    def _seconds_until_free(self, worker: Worker, model: ServedModel, *, is_served: bool) -> float:
        """How long this device should go on with what it has."""
        if is_served:  # more devices help only if they are idle, and the others take longer than a load
            is_idle = not worker.jobs and not self._waiting_for(worker)
            return 0.0 if is_idle and self._is_worth_a_load(worker, model) else math.inf
        if worker.current is None and worker.wanted is None:
            return -1.0  # better than one that would have to let go of something
        if not self._waiting_for(worker) or model.is_pinned:
            return 0.0
        if worker.current is not None and not worker.current.has_had_jobs:
            return max(self.wait_s, _LOOK_S)  # it came for those that wait
        since_s = self._queue.waiting_since_s(model.name)
        waited_s = 0.0 if since_s is None else time.time() - since_s
        return self.wait_s - min(waited_s, worker.kept_s)

    def _is_worth_a_load(self, worker: Worker, model: ServedModel) -> bool:
        load_s = self.load_seconds(worker, model)
        holders = self.holders(model)
        work = self._queue.work_for(model.name)
        work += sum(job.work_left for holder in holders for job in holder.jobs_on_device)
        wait_s = self._paces.of(model.name).seconds(work / len(holders))
        return wait_s is not None and (load_s is None or wait_s > load_s)

    def load_seconds(self, worker: Worker, model: ServedModel) -> float | None:
        """What the last load of the model took on this device, else on another; ``None`` if there was none."""
        found = (each.load_seconds(model) for each in (worker, *self._workers))
        return next((seconds for seconds in found if seconds is not None), None)

    def _waiting_for(self, worker: Worker) -> int:
        return self._queue.count(worker.model.name) if worker.model else 0

    def _find_takers(self, model: ServedModel) -> list[Worker]:
        return [worker for worker in self._workers if worker.is_settled and self._may_take(worker, model)]

    def _find_showing(self, model: ServedModel) -> list[Worker]:
        return [worker for worker in self._workers if worker.model is model]

    def _may_take(self, worker: Worker, model: ServedModel) -> bool:
        if worker.model is model and worker.current is not None:
            return False
        return model.name not in worker.loader.errors and not self._is_held(worker)

    def _is_held(self, worker: Worker) -> bool:
        """Whether it has a pinned model that no other device has."""
        model = worker.model
        return model is not None and model.is_pinned and self.holders(model) == [worker]

    def _find_whether_coming(self, model: ServedModel) -> bool:
        return any(worker.wanted is model and not self._has(worker, model) for worker in self._workers)

    @staticmethod
    def _has(worker: Worker, model: ServedModel) -> bool:
        return worker.current is not None and worker.current.model is model and worker.current.is_serving

    def _find_holders(self, model: ServedModel) -> list[Worker]:
        return [worker for worker in self._workers if worker.wanted is model]

    def _unload_if_idle(self, worker: Worker) -> float:
        """Seconds until it will have been idle for too long."""
        model = worker.model
        if worker.current is None or model is None:
            return math.inf
        if not worker.is_settled or not worker.is_idle:
            return math.inf
        if self._queue.count(model.name) or self._is_held(worker):
            return math.inf
        left_s = model.config.idle_unload_s - worker.current.idle_s
        if left_s <= 0:
            worker.want(None)
            return math.inf
        return left_s

    # --- operators --------------------------------------------------------------------------------------------------

    def load(self, model: ServedModel) -> None:
        """Tries again where a load has failed, or the model came in a slower mode than it could; else has a device load
        it, unless one does or has. Raises ``LoadError`` if all devices keep models that are pinned.
        """
        for worker in self._workers:
            if worker.loader.errors.pop(model.name, None) is not None and worker.wanted is None:
                worker.want(model)
        self._changes.announce()
        if holders := self.holders(model):
            for worker in holders:
                if worker.is_serving and worker.load.fit and worker.load.fit.note:
                    worker.reload()
            return
        free = [worker for worker in self._workers if not self._is_held(worker)]
        if not free:
            raise self._all_held(model)
        min(free, key=self._reluctance).want(model)

    def _reluctance(self, worker: Worker) -> tuple[int, ...]:
        """The less a device has to do, the sooner it can have another model."""
        return (not worker.is_settled, worker.wanted is not None, self._waiting_for(worker), len(worker.jobs))

    def unload(self, model: ServedModel) -> None:
        """Devices let go of it, once its jobs there are done. It comes back for the next job, or for those that wait.

        Raises ``InvalidValue`` if it is pinned.
        """
        if model.is_pinned:
            raise InvalidValue(f"{model.id} is pinned: unpin it first", param="model")
        for worker in self.holders(model):
            going_on = worker.current.model if worker.current and worker.current.model is not model else None
            worker.want(going_on)

    def pin(self, model: ServedModel, *, is_pinned: bool) -> None:
        """A pinned model is loaded, and some device keeps it; until the server ends, or it is unpinned."""
        if is_pinned:
            self.load(model)
        model.is_pinned = is_pinned
        self._changes.announce()

    def may_give_up(self, worker: Worker, model: ServedModel | None) -> bool:
        """Whether the device may go to that model: it does not keep a pinned one. ``None``: the one that it has."""
        return model in (None, worker.model) or not self._is_held(worker)

    def _find_failure(self, model: ServedModel) -> SafelightError | None:
        errors = [worker.loader.errors.get(model.name) for worker in self._workers]
        found = [error for error in errors if error is not None]
        if found and len(found) == len(errors):
            return found[0]
        open_workers = [worker for worker, error in zip(self._workers, errors, strict=True) if error is None]
        if open_workers and not self.holders(model) and all(self._is_held(worker) for worker in open_workers):
            return self._all_held(model)
        return None

    def _all_held(self, model: ServedModel) -> LoadError:
        held = ", ".join(other.id for other in self._models if other.is_pinned and self.holders(other))
        return LoadError(f"{model.id} cannot be loaded: every device keeps a pinned model ({held}); unpin one")
