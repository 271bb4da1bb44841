"""Spans of jobs as the front sees them: each wait in the queue, each attempt, the storing of what it came to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from safelight.errors import WorkerCrashed
from safelight.jobs import Job
from safelight.params import GenerationParams
from safelight.protocol import Failed, JobOutcome, Unfit
from safelight.server.team import Team
from safelight.tracing import Attributes, Span, TraceContext, Tracing


class JobSpans:
    """All are children of the span of the request that made the job, whichever server answered it."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._started_s = time.time()
        self._again: dict[str, tuple[float, TraceContext]] = {}
        """Since when a job waits again, and the attempt before."""

    def begin(self, job: Job, team: Team) -> Span:
        """Its wait is over, an attempt begins."""
        context = job.request.trace_context
        begun_s = job.started_s or time.time()
        first_s = job.created_s if job.attempt == 1 else max(job.created_s, self._started_s)
        waited_since_s, earlier = self._again.pop(job.id, (first_s, {}))
        about: Attributes = {"safelight.job.id": job.id, "safelight.attempt": job.attempt}
        self._tracing.begin("queue", context, about, start_s=min(waited_since_s, begun_s)).end(begun_s)
        leader = team.leader
        on: Attributes = {
            "safelight.worker.id": leader.worker_id,
            "safelight.device": leader.device.name,
            "safelight.team.size": len(team),
        }
        links = [earlier] if earlier else []
        return self._tracing.begin("attempt", context, {**about, **on}, start_s=begun_s, links=links)

    @contextmanager
    def ending(self, job: Job, attempt: Span, outcome: JobOutcome | WorkerCrashed) -> Iterator[None]:
        """The attempt is over; inside, what it came to is stored."""
        ended_s = time.time()
        attempt.note({"safelight.outcome": type(outcome).__name__.lower(), "safelight.steps": job.step})
        match outcome:
            case Failed(code=code, message=message) | Unfit(code=code, message=message):
                attempt.fail(code, message)
            case WorkerCrashed():
                attempt.fail(outcome.code, outcome.message)
        attempt.end(ended_s)
        store = self._tracing.begin("store", job.request.trace_context, {"safelight.job.id": job.id}, start_s=ended_s)
        yield
        store.note({"safelight.job.status": job.status.value})
        store.end()
        if not job.status.is_terminal and attempt.context:
            self._again[job.id] = (time.time(), attempt.context)


def asked_for(params: GenerationParams, model: str) -> Attributes:
    """What was asked, without the prompt; OpenTelemetry's names where it has some."""
    return {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.output.type": "image",
        "gen_ai.request.model": model,
        "gen_ai.request.seed": params.seeds[0],
        "gen_ai.request.choice.count": params.num_images,
        "safelight.width": params.width,
        "safelight.height": params.height,
        "safelight.num_inference_steps": params.num_inference_steps,
    }
