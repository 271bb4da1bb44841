"""Which jobs are made by several devices together: those that nobody waits behind, and that are done sooner so."""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safelight.jobs import Job
from safelight.server.model_instance import ModelInstance
from safelight.server.pace import StepPaces
from safelight.server.queue import JobQueue
from safelight.server.team import Team
from safelight.server.worker import Worker
from safelight.server.worker_state import WorkerState

log = logging.getLogger(__name__)

OFF, AUTO = "off", "auto"

_SIZES = (2, 4, 8)
_LEAST_GAIN = 1.05
_STAYING_IDLE = 0.25
_MOST_FAILURES = 2
_LOOK_S = 0.02
"""After a job was accepted: those of a burst do not arrive in one moment."""

_Members = tuple[ModelInstance, ...]


@dataclass(slots=True)
class _Block:
    """Processes that have been a team: where they met, and how often they lost each other though all worked."""

    rendezvous: Path
    failures: int = 0


class TeamChoice:
    """Teams are blocks of neighbours, so that a device is connected to few others: 0 and 1, 2 and 3; 0 to 3.

    With ``auto`` the first job of a kind is made alone, the next ones by two, four and eight for as long as that is
    faster, and from then on whichever was: nothing is assumed of how the devices are connected. A number is the size of
    all teams. ``folder`` is for the files by which teams meet.
    """

    def __init__(self, setting: str, workers: Sequence[Worker], queue: JobQueue, folder: Path) -> None:
        self._setting = setting
        self._workers = workers
        self._queue = queue
        self._folder = folder
        self._has_folder = False
        self._paces = StepPaces()
        self._blocks: dict[_Members, _Block] = {}

    def team_for(self, job: Job, instance: ModelInstance) -> Team:
        """Who is to make a job that ``instance`` admits: it alone, or idle ones of its model together."""
        if not self._may_share(job, instance):
            return Team([instance])
        try:
            blocks = (members for size in self._sizes(job) for members in self._idle_blocks(instance, size))
            members = next(blocks, None)
        except OSError as error:
            log.warning("no workers can meet: %s", error)
            return Team([instance])
        return Team([instance]) if members is None else Team(members, self._met(members).rendezvous)

    async def is_waited_behind(self, job: Job, team: Team) -> bool:
        """Whether, a moment later, another job has come, for which members of ``team`` were better left."""
        if len(team) == 1:
            return False
        await asyncio.sleep(min(max(job.created_s + _LOOK_S - time.time(), 0.0), _LOOK_S))
        return self._queue.expected > 0

    def learn(self, job: Job, team: Team, step_s: float | None) -> None:
        """Of a job that a team has made, or not; ``step_s`` is what a step took, if that can be told."""
        if step_s is not None:
            self._paces.measured(job, len(team), step_s)
        if team.is_broken and (block := self._blocks.get(tuple(team.members))):
            block.rendezvous, block.failures = self._new_file(), block.failures + team.is_lost
            if block.failures == _MOST_FAILURES:
                log.warning("workers %s make no more pictures together", ", ".join(map(str, team.worker_ids)))

    # --- may it? ----------------------------------------------------------------------------------------------------

    def _may_share(self, job: Job, instance: ModelInstance) -> bool:
        """Nobody waits behind it, it has lost no worker yet, and its pictures gain nothing by sharing their steps."""
        if self._setting == OFF or job.crashes or self._queue.expected > 1:
            return False
        if self._setting == AUTO and not instance.device.name.startswith("cuda"):
            return False
        params = job.params
        return params.num_images == 1 or 2 * instance.model.card.tokens(params) > instance.load.batch_tokens

    # --- how many? --------------------------------------------------------------------------------------------------

    def _sizes(self, job: Job) -> list[int]:
        """The best first."""
        if self._setting != AUTO:
            return [int(self._setting)]
        best_s = self._paces.seconds(job, 1)
        sizes: list[int] = []
        for size in _SIZES if best_s is not None else ():
            seconds = self._paces.seconds(job, size)
            if seconds is not None and best_s is not None and seconds * _LEAST_GAIN > best_s:
                break
            sizes.insert(0, size)
            if seconds is None:
                break  # to be tried, before more are
            best_s = seconds
        return sizes

    # --- which? -----------------------------------------------------------------------------------------------------

    def _idle_blocks(self, instance: ModelInstance, size: int) -> Iterator[_Members]:
        """Of so many workers, if enough others stay idle for the jobs to come."""
        idle = sum(worker.is_idle for worker in self._workers)
        if idle - size < math.floor(len(self._workers) * _STAYING_IDLE):
            return
        for first in range(0, len(self._workers) - size + 1, size):
            members = tuple(
                worker.current
                for worker in self._workers[first : first + size]
                if worker.current is not None and _is_free(worker.current, instance)
            )
            if len(members) == size and self._met(members).failures < _MOST_FAILURES:
                yield members

    def _met(self, members: _Members) -> _Block:
        if members not in self._blocks:
            alive = {known: block for known, block in self._blocks.items() if all(each.is_serving for each in known)}
            self._blocks = {**alive, members: _Block(self._new_file())}
        return self._blocks[members]

    def _new_file(self) -> Path:
        """Raises ``OSError`` if there can be none."""
        if not self._has_folder:
            shutil.rmtree(self._folder, ignore_errors=True)  # what an earlier server left
            self._folder.mkdir(mode=0o700, parents=True)
            self._has_folder = True
        return self._folder / uuid.uuid4().hex


def _is_free(each: ModelInstance, instance: ModelInstance) -> bool:
    return each.model is instance.model and each.state is WorkerState.READY and not each.jobs
