"""New processes for the workers, one after the other, so that some serve all the time."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

from safelight.logs import rfc3339
from safelight.server.changes import Changes
from safelight.server.metrics import Metrics
from safelight.server.served_model import ServedModel
from safelight.server.worker import Worker

log = logging.getLogger(__name__)


class Rollout:
    """``order`` says which workers; ``run`` does them for ever. What is ordered meanwhile joins the line.

    A worker does the jobs that it has, its new process becomes ready, the old one is gone: only then the next. If one
    that serves cannot be replaced, the others keep what they have.
    """

    def __init__(self, workers: Sequence[Worker], changes: Changes, metrics: Metrics) -> None:
        self._workers = workers
        self._changes = changes
        self._metrics = metrics
        self._line: dict[Worker, ServedModel | None] = {}
        self._current: Worker | None = None
        self._model: ServedModel | None = None
        self._done: list[int] = []
        self._error: str | None = None
        self._began: tuple[float, float] | None = None
        self._seconds: float | None = None

    def order(self, workers: Iterable[Worker], model: ServedModel | None = None) -> None:
        """New processes, with this model, or the one that each worker has. Who has a ``model`` already keeps it."""
        if not self.is_running:
            self._done, self._error, self._seconds = [], None, None
            self._began = time.time(), time.monotonic()
        self._model = model
        self._line |= {worker: model for worker in workers if model is None or worker.model is not model}
        if not self.is_running:
            self._seconds = 0.0
        self._changes.announce()

    def call_off(self) -> None:
        """Those that wait for their turn keep what they have."""
        self._line.clear()

    @property
    def is_running(self) -> bool:
        return bool(self._line) or self._current is not None

    async def run(self) -> None:
        """As ordered, for ever."""
        while True:
            while (worker := self._next()) is None:
                await self._changes.wait()
            self._current = worker
            try:
                await self._renew(worker, self._line.pop(worker))
            finally:
                self._current = None
            if not self._line and self._began is not None:
                self._seconds = time.monotonic() - self._began[1]
            self._changes.announce()

    def _next(self) -> Worker | None:
        """Of those that were ordered, the first that can be spared: another one serves, or none ever will."""
        return next((worker for worker in self._line if self._can_be_spared(worker)), None)

    def _can_be_spared(self, worker: Worker) -> bool:
        others = [other for other in self._workers if other is not worker]
        is_last = worker.is_serving and not any(other.is_serving for other in others)
        return not is_last or all(other.wanted is None for other in others)

    async def _renew(self, worker: Worker, model: ServedModel | None) -> None:
        before, was_serving = worker.switch, worker.is_serving
        worker.renew(model)
        while worker.is_being_renewed:
            await self._changes.wait()
        switch_error = worker.switch.error if worker.switch and worker.switch is not before else None
        error = switch_error or (worker.error and worker.error.message)
        self._metrics.worker_renewals.labels("failed" if error else "done").inc()
        if error is None:
            self._done.append(worker.id)
            return
        log.error("worker %d got no new process: %s", worker.id, error)
        self._error = f"worker {worker.id}: {error}"
        if was_serving:
            self.call_off()

    def as_json(self) -> dict[str, Any] | None:
        """As ``/v1/status`` tells it; ``None`` before the first."""
        if self._began is None:
            return None
        return {
            "state": "running" if self.is_running else "failed" if self._error else "done",
            "model": self._model.id if self._model else None,
            "worker": self._current.id if self._current else None,
            "waiting": [worker.id for worker in self._line],
            "done": self._done,
            "error": self._error,
            "began_at": rfc3339(self._began[0]),
            "seconds": None if self.is_running or self._seconds is None else round(self._seconds, 2),
        }
