"""A job as Replicate's clients read it."""

from __future__ import annotations

from typing import Any

import msgspec

from safelight.jobs import Job, JobError, JobResult, JobStatus
from safelight.logs import rfc3339

_STATUS = {
    JobStatus.QUEUED: "starting",
    JobStatus.RUNNING: "processing",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "canceled",
}
_BAR_CHARS = 10


def prediction(
    job: Job, model: str, base_url: str, output: list[str], position: int | None, eta_s: float | None
) -> dict[str, Any]:
    """The body of each answer of the job API. ``output`` is where the pictures are once the job has succeeded,
    ``position`` how many jobs are before this one, ``eta_s`` the time to its end.
    """
    name = job.request.client_id or job.id
    url = f"{base_url}/v1/predictions/{name}"
    error = job.outcome if isinstance(job.outcome, JobError) else None
    result = job.outcome if isinstance(job.outcome, JobResult) else None
    return {
        "id": name,
        "model": model,
        "version": model,
        "status": _STATUS[job.status],
        "input": job.request.input,
        "output": output if result else None,
        "logs": _logs(job),
        "error": error and error.message,
        "error_code": error and error.code,
        "warnings": result.warnings if result else [],
        "seed": job.params.seed,
        "params": msgspec.to_builtins(job.params),
        "metrics": _metrics(job),
        "created_at": _time(job.created_s),
        "started_at": _time(job.started_s),
        "completed_at": _time(job.finished_s),
        "urls": {"get": url, "cancel": f"{url}/cancel", "stream": f"{url}/stream"},
        "progress": {"step": _step(job), "total": job.params.total_steps, "preview_url": _preview_url(job, url)},
        "queue_position": position,
        "eta_s": None if eta_s is None or job.status.is_terminal else round(eta_s, 2),
        "attempt": job.attempt,
    }


def _logs(job: Job) -> str:
    return progress_line(_step(job), job.params.total_steps) if _step(job) else ""


def _step(job: Job) -> int:
    """Of a finished job that was read from disk, only the outcome is known."""
    return job.params.total_steps if job.status is JobStatus.SUCCEEDED else job.step


def progress_line(step: int, total_steps: int) -> str:
    """As tqdm writes it: Replicate's SDKs parse their progress out of the log."""
    bar = "#" * (step * _BAR_CHARS // total_steps)
    return f"{step * 100 // total_steps:3d}%|{bar:<{_BAR_CHARS}}| {step}/{total_steps}\n"


def _preview_url(job: Job, url: str) -> str | None:
    if not job.previews or job.status.is_terminal:
        return None
    return f"{url}/preview/{job.previews[-1].image_index}"


def _metrics(job: Job) -> dict[str, float]:
    metrics = {}
    if job.started_s is not None:
        metrics["queue_time"] = round(max(job.started_s - job.created_s, 0.0), 4)
        if job.finished_s is not None:
            metrics["predict_time"] = round(max(job.finished_s - job.started_s, 0.0), 4)
    return metrics


def _time(unix_s: float | None) -> str | None:
    return None if unix_s is None else rfc3339(unix_s)
