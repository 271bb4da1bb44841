"""The process that makes a job, and those that make its steps with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec

from safelight.errors import WorkerCrashed
from safelight.jobs import Job
from safelight.protocol import (
    Cancelled,
    Disband,
    Disbanded,
    Generate,
    Helped,
    JobOutcome,
    JobProgress,
    Succeeded,
    TeamPlace,
)
from safelight.server.model_instance import ModelInstance
from safelight.server.worker_jobs import OnProgress

log = logging.getLogger(__name__)

_PART_S = 5.0
_DISBAND_S = 10.0


class Team:
    """``members``, the leader first; a leader alone is one too. Others meet by the file ``rendezvous``."""

    def __init__(self, members: Sequence[ModelInstance], rendezvous: Path | None = None) -> None:
        self.members = list(members)
        self.leader = members[0]
        self.is_broken = False
        """Whether its members may not be connected any more."""
        self.is_lost = False
        """Whether that is why the job has no outcome, though its leader works."""
        self._rendezvous = rendezvous

    def __len__(self) -> int:
        return len(self.members)

    @property
    def worker_ids(self) -> tuple[int, ...]:
        return tuple(member.worker_id for member in self.members)

    def reserve(self, job: Job) -> None:
        """Keeps a place with each of them, and no other job may share their steps."""
        for member in self.members:
            member.reserve(job, is_alone=len(self) > 1)

    def release(self, job: Job) -> None:
        """As ``ModelInstance.release``."""
        for member in self.members:
            member.release(job)

    def holds(self, job: Job) -> bool:
        """Whether all have a place for the job, and work."""
        return all(member.holds(job) for member in self.members)

    async def run(self, job: Job, order: Generate, on_progress: OnProgress) -> JobOutcome:
        """Runs a job that has its places to the leader's outcome. Nobody is at work on it after that.

        Raises ``WorkerCrashed`` if the leader dies with it; if another one does, the outcome is ``Disbanded``.
        """
        if len(self) == 1:
            return await self.leader.run(job, order, on_progress)
        runs = {
            asyncio.create_task(_run(member, job, self._order(order, rank), _heard if rank else on_progress)): member
            for rank, member in enumerate(self.members)
        }
        leading, *_ = runs
        waiting = set(runs)
        while leading in waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not all(map(_went_well, done)):
                break
        if waiting and leading not in waiting and _went_well(leading):  # they come to the end of the same step
            _, waiting = await asyncio.wait(waiting, timeout=_PART_S)
        await self._disband(job, {run: runs[run] for run in waiting})
        self.is_broken = not all(map(_went_well, runs))
        outcome = leading.result()
        self.is_lost = isinstance(outcome, Disbanded)
        return outcome

    def _order(self, order: Generate, rank: int) -> Generate:
        return msgspec.structs.replace(order, team=TeamPlace(rank, len(self), str(self._rendezvous)))

    async def _disband(self, job: Job, runs: dict[asyncio.Task[JobOutcome], ModelInstance]) -> None:
        """Those that do not let go of each other are ended, with whatever they wait for on their device."""
        if not runs:
            return
        log.warning("%s: its team is lost; %d workers are told", job.id, len(runs))
        for member in runs.values():
            member.tell(job, Disband(job.id))
        _, hung = await asyncio.wait(runs, timeout=_DISBAND_S)
        if hung:
            await asyncio.gather(*(runs[run].end_hung(f"did not let go of the team of {job.id}") for run in hung))
            await asyncio.wait(hung)


async def _run(member: ModelInstance, job: Job, order: Generate, on_progress: OnProgress) -> JobOutcome:
    if not member.holds(job):  # since the team was asked
        raise WorkerCrashed("the worker died before it began with the image; ask again")
    return await member.run(job, order, on_progress)


def _went_well(run: asyncio.Task[JobOutcome]) -> bool:
    return run.exception() is None and isinstance(run.result(), Succeeded | Helped | Cancelled)


def _heard(_progress: JobProgress) -> None:
    """The leader tells of the same steps."""
