"""Which of the jobs that wait for a model begins next, and on which device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable

from safelight.jobs import Job
from safelight.server.device_paces import CLEARLY, DevicePaces
from safelight.server.model_instance import ModelInstance
from safelight.server.room import has_room
from safelight.server.serving import Serving

_LOOK_AHEAD = 32
"""Jobs in line that are looked at while those before them wait for a better device."""
_LOOKED_AT = 64
"""Devices that have room for a job, the least busy ones."""

_Promises = dict[ModelInstance, float]
"""Seconds for which devices are taken by jobs that wait for them, beside what they do now."""


class Choice:
    """An idle device first; then one whose step has room for the job; else the job waits.

    It also waits if a device that is busy now would finish it sooner than those that are free: these are for the next
    in line, unless that one does better to wait as well. And a job that lost a worker goes to another one, if there is.
    """

    def __init__(self, paces: DevicePaces) -> None:
        self._paces = paces

    def next(self, line: Iterable[Job], serving: Serving) -> tuple[Job, ModelInstance] | None:
        """Of the jobs for one model that wait in ``line``, the first that is to begin now, and where."""
        promised_s: _Promises = {}
        for job in itertools.islice(line, _LOOK_AHEAD):
            found = list(itertools.islice(serving.admitting(job), _LOOKED_AT))
            avoided = _avoided(job, found, serving)
            free = [each for each in found if each not in promised_s and each not in avoided]
            if free:
                here = min(free, key=lambda each: self._reluctance(job, each))
                if not self._are_uneven(job):
                    return job, here
                busy = set(serving.of(job.request.model)).difference(free, avoided)
                if (better := self._better(job, here, busy, promised_s)) is None:
                    return job, here
                promised_s[better] = promised_s.get(better, 0.0) + self._pace(job, better) * job.params.work
            elif avoided:  # nobody joins the others, or they would never be free for it
                others = set(serving.of(job.request.model)).difference(avoided)
                promised_s |= dict.fromkeys(others, math.inf)
            else:
                return None
        return None

    def _reluctance(self, job: Job, instance: ModelInstance) -> tuple[float, ...]:
        """Processes that came after one that died, and did nothing yet, are the last choice."""
        is_suspect = instance.follows_a_death and not instance.has_succeeded
        mates = instance.jobs_on_device
        shared = sum(min(mate.work_left, job.params.work) for mate in mates)  # until the job is done
        seconds = self._pace(job, instance) * (job.params.work + shared)
        is_cold = (job.params.width, job.params.height) not in instance.load.warm
        return is_suspect, seconds * (CLEARLY if mates else 1.0), is_cold, len(instance.jobs)

    def _better(
        self, job: Job, here: ModelInstance, busy: Collection[ModelInstance], promised_s: _Promises
    ) -> ModelInstance | None:
        """The busy device that would finish it sooner than ``here`` does, though it has to finish others first."""

        def seconds(each: ModelInstance) -> float:
            work = sum(mate.work_left for mate in each.jobs_on_device) + job.params.work
            return promised_s.get(each, 0.0) + self._pace(job, each) * work

        _, here_s, *_ = self._reluctance(job, here)
        soonest = min(busy, key=seconds, default=None)
        return soonest if soonest is not None and seconds(soonest) * CLEARLY < here_s else None

    def _pace(self, job: Job, instance: ModelInstance) -> float:
        """Seconds per unit of work; where devices are alike, what was measured does not tell them apart."""
        if not self._are_uneven(job):
            return 1.0
        return self._paces.pace(job.request.model, instance.device.name, job.params.shape) or 1.0

    def _are_uneven(self, job: Job) -> bool:
        return self._paces.are_uneven(job.request.model, job.params.shape)


def _avoided(job: Job, found: Collection[ModelInstance], serving: Serving) -> set[ModelInstance]:
    """Those without the memory for it, if there are others; and of these, those on whose devices it has lost a worker,
    if there are others still. Where none has the memory, any is to say so.
    """
    if not job.lost_on and all(has_room(each, job.params) for each in found):
        return set()
    instances = set(serving.of(job.request.model))
    roomy = {each for each in instances if has_room(each, job.params)} or instances
    return instances - ({each for each in roomy if each.worker_id not in job.lost_on} or roomy)
