"""A job, what was asked and what came of it, and the moves that its status may make; no clock, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from safelight.errors import InvalidTransition, SafelightError, error_from_code
from safelight.params import GenerationParams, ImageFormat
from safelight.protocol import Preview, trace_id_of


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
    JobStatus.RUNNING: frozenset({JobStatus.QUEUED, JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}),
}


COMPLETED = "completed"
"""The webhook event of a job's end."""


class Webhook(msgspec.Struct, frozen=True):
    """Who is told of a job, of which events, and under which address this server was reached."""

    url: str
    events: list[str]
    base_url: str


class JobRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What was accepted; it never changes. ``owner`` is whose share of the queue it uses and who may see it.

    ``model`` is the name of the model that is to draw it; empty: the default.

    ``input`` is what the caller wrote, for APIs that repeat it, ``client_id`` the name that the caller gave the job.
    Jobs of higher ``priority`` go first among those of one owner. ``trace_context`` is as in ``Generate``.
    """

    params: GenerationParams
    model: str = ""
    request_id: str = ""
    owner: str = ""
    api: str = "images"
    priority: int = 0
    input: dict[str, Any] = {}
    client_id: str = ""
    webhook: Webhook | None = None
    trace_context: dict[str, str] = {}


class ResultImage(msgspec.Struct, frozen=True):
    """One finished picture: a file of ``size_bytes`` in the result folder."""

    file: str
    format: ImageFormat
    seed: int
    width: int
    height: int
    size_bytes: int


class JobResult(msgspec.Struct, frozen=True):
    """Pictures in the order of their seeds; ``warnings`` are for the user, ``seconds`` maps stages to their time."""

    images: list[ResultImage]
    warnings: list[str]
    text_tokens: int
    seconds: dict[str, float]


class JobError(msgspec.Struct, frozen=True):
    """Why a job failed or was cancelled."""

    code: str
    message: str

    @classmethod
    def of(cls, error: SafelightError) -> JobError:
        return cls(error.code, error.message)

    def as_exception(self) -> SafelightError:
        return error_from_code(self.code, self.message)


JobOutcome = JobResult | JobError


@dataclass(slots=True, eq=False)
class Job:
    """The queued unit. Times are Unix times in seconds.

    ``attempt`` counts how often it was handed to a worker and fences late results; ``crashes`` counts the workers
    that died with it, ``lost_on`` says which, as far as this server saw it. ``step`` counts finished denoising steps of
    this attempt, which ``workers`` make, the leader first; ``previews`` are its pictures so far.
    """

    id: str
    request: JobRequest
    created_s: float = 0.0
    status: JobStatus = JobStatus.QUEUED
    attempt: int = 0
    crashes: int = 0
    lost_on: set[int] = field(default_factory=set)
    started_s: float | None = None
    finished_s: float | None = None
    outcome: JobOutcome | None = None
    step: int = 0
    workers: tuple[int, ...] = ()
    is_cancel_requested: bool = False
    followers: int = 0
    previews: list[Preview] = field(default_factory=list)

    @property
    def params(self) -> GenerationParams:
        return self.request.params

    @property
    def work_left(self) -> float:
        """Megapixels x transformer calls that it still needs."""
        return self.params.work * (1 - self.step / self.params.total_steps)

    @property
    def ids(self) -> Mapping[str, str]:
        """What a log line about it is to have."""
        request = self.request
        return {"job_id": self.id, "request_id": request.request_id, "trace_id": trace_id_of(request.trace_context)}

    @property
    def result(self) -> JobResult:
        """The pictures of a job that succeeded. Raises what it ended with otherwise."""
        if isinstance(self.outcome, JobResult):
            return self.outcome
        if isinstance(self.outcome, JobError):
            raise self.outcome.as_exception()
        raise InvalidTransition(f"{self.id} is {self.status}: it has no result")

    def raise_unless_succeeded(self) -> None:
        """Raises what a job ended with that did not end well."""
        _ = self.result

    def move_to(self, status: JobStatus) -> None:
        """Raises ``InvalidTransition`` for a move that is not in the table."""
        if status not in _NEXT.get(self.status, frozenset()):
            raise InvalidTransition(f"{self.id}: {self.status} -> {status}")
        self.status = status
