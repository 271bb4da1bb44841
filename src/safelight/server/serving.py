"""The model instances that serve: who of them may take a job, and who has which."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice

from safelight.jobs import Job
from safelight.params import GenerationParams
from safelight.server.changes import Changes
from safelight.server.model_instance import ModelInstance
from safelight.server.team import Team
from safelight.server.worker import Worker

_LOOKED_AT = 64
"""Instances that draw already, of those that may have room: the least busy ones. One of these admits a job, or none."""

Group = tuple[object, ...]
Place = tuple[int, int, int, int]


class Serving:
    """Sorted when something about a device has changed, and for single instances when their jobs have: what a job costs
    does not depend on how many instances there are.
    """

    def __init__(self, workers: Sequence[Worker], changes: Changes) -> None:
        self._workers = workers
        self._changes = changes
        self._seen_count = -1
        self._of_model: defaultdict[str, set[ModelInstance]] = defaultdict(set)
        self._open: defaultdict[Group, list[Place]] = defaultdict(list)
        self._at: dict[Place, ModelInstance] = {}
        self._places: dict[ModelInstance, tuple[Group, Place]] = {}
        self._touched: set[ModelInstance] = set()
        self._teams: dict[Job, Team] = {}

    def of(self, model: str) -> Collection[ModelInstance]:
        """Those that have this model."""
        self._sort()
        return self._of_model.get(model, ())

    def admitting(self, job: Job) -> Iterator[ModelInstance]:
        """Those in which the job may begin now, the least busy first: an idle device is better than a shared one."""
        self._sort()
        free = self._open.get(_group(job), ())
        shared = self._open.get(_group(job, job.params), ())
        found = (self._at[place] for place in chain(free, islice(shared, _LOOKED_AT)))
        return (instance for instance in found if instance.admits(job))

    def holders(self, job: Job) -> Sequence[ModelInstance]:
        """Those that the job has a place in, the leader first."""
        return self._teams[job].members if job in self._teams else ()

    def reserve(self, job: Job, team: Team) -> None:
        """As ``Team.reserve``."""
        team.reserve(job)
        self._teams[job] = team
        self._touched.update(team.members)

    def release(self, job: Job) -> None:
        """As ``Team.release``."""
        if (team := self._teams.pop(job, None)) is not None:
            team.release(job)
            self._touched.update(team.members)

    def touch(self, instance: ModelInstance) -> None:
        """Its jobs changed."""
        self._touched.add(instance)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _sort(self) -> None:
        if self._seen_count != self._changes.count:
            self._seen_count = self._changes.count
            for table in (self._of_model, self._open, self._at, self._places):
                table.clear()
            self._touched = {instance for worker in self._workers for instance in worker.instances}
        for instance in self._touched:
            self._file(instance)
        self._touched.clear()

    def _file(self, instance: ModelInstance) -> None:
        if (old := self._places.pop(instance, None)) is not None:
            group, place = old
            del self._open[group][bisect_left(self._open[group], place)], self._at[place]
        if not instance.is_serving:
            return self._of_model[instance.model.name].discard(instance)
        self._of_model[instance.model.name].add(instance)
        if instance.is_open:
            drawing = instance.jobs_on_device
            group = (instance.model.name, *(_alike(drawing[0].params) if drawing else ()))
            place = len(drawing), len(instance.jobs), instance.worker_id, id(instance)
            insort(self._open[group], place)
            self._at[place] = instance
            self._places[instance] = group, place


def _group(job: Job, params: GenerationParams | None = None) -> Group:
    return (job.request.model, *(_alike(params) if params else ()))


def _alike(params: GenerationParams) -> Group:
    """Jobs may share a device if this is the same."""
    return params.shape, params.loras
