"""The model instances that serve, and who of them may take a job."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from safelight.jobs import Job
from safelight.server.changes import Changes
from safelight.server.model_instance import ModelInstance
from safelight.server.worker import Worker


class Serving:
    """Those of all workers."""

    def __init__(self, workers: Sequence[Worker], changes: Changes) -> None:
        self._workers = workers

    def of(self, model: str) -> Collection[ModelInstance]:
        """Those that have this model."""
        instances = (instance for worker in self._workers for instance in worker.instances)
        return [each for each in instances if each.model.name == model and each.is_serving]

    def admitting(self, job: Job) -> Iterator[ModelInstance]:
        """Those in which the job may begin now."""
        return (each for each in self.of(job.request.model) if each.admits(job))
