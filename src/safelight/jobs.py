"""A job and the moves that its status may make; no clock, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from safelight.errors import InvalidTransition
from safelight.params import GenerationParams


class JobStatus(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self not in _NEXT


_NEXT: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}),
}


@dataclass(slots=True)
class Job:
    """The queued unit: ``params`` to be turned into images once. ``step`` counts finished denoising steps."""

    id: str
    params: GenerationParams
    request_id: str = ""
    status: JobStatus = JobStatus.QUEUED
    attempt: int = 0
    step: int = 0

    def move_to(self, status: JobStatus) -> None:
        """Raises ``InvalidTransition`` for a move that is not in the table."""
        if status not in _NEXT.get(self.status, frozenset()):
            raise InvalidTransition(f"{self.id}: {self.status} -> {status}")
        self.status = status
