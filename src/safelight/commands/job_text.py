"""Jobs as lines of text, from the prediction objects of the job API."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from safelight.status_text import age_text, duration_text, state_style
from safelight.terminal import Look, cells, clipped, printable

_STATUS: dict[str, str] = {"starting": "queued", "processing": "running", "canceled": "cancelled"}
_HEADERS = ("ID", "STATUS", "AGE", "MODEL", "SIZE", "PROGRESS", "TIME", "PROMPT")
_MODEL_COLUMN = _HEADERS.index("MODEL")
_STATUS_COLUMN = _HEADERS.index("STATUS")
_GAP = "  "
_LEAST_PROMPT_COLUMNS = 8
_OUR_ID_CHARS, _SHORT_ID_CHARS = len("job_") + 32, len("job_") + 8


def is_over(job: dict[str, Any]) -> bool:
    """Whether it has ended, well or not."""
    return job["status"] in ("succeeded", "failed", "canceled")


def status_of(job: dict[str, Any]) -> str:
    """In this project's words, not Replicate's."""
    status: str = job["status"]
    return _STATUS.get(status, status)


def short_id(name: str) -> str:
    """Enough of an id that this server gave to tell a job from others; a client's own id stays as it is."""
    is_ours = name.startswith("job_") and len(name) == _OUR_ID_CHARS
    return name[:_SHORT_ID_CHARS] if is_ours else printable(name)


def prompt_of(job: dict[str, Any]) -> str:
    """In one line."""
    return " ".join(printable(job["params"]["prompt"]).split())


def job_table(jobs: Sequence[dict[str, Any]], columns: int | None, look: Look) -> list[str]:
    """A line of headings and one for each job, at most so many columns wide. Their model, if it is not the same."""
    rows = [_HEADERS, *(_row(job) for job in jobs)]
    if len({job["model"] for job in jobs}) < 2:
        rows = [(*row[:_MODEL_COLUMN], *row[_MODEL_COLUMN + 1 :]) for row in rows]
    widths = [max(cells(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    left = None if columns is None else max(columns - sum(widths) - len(_GAP) * len(widths), _LEAST_PROMPT_COLUMNS)
    return [_line(row, widths, left, look, is_heading=number == 0) for number, row in enumerate(rows)]


def _line(row: Sequence[str], widths: Sequence[int], left: int | None, look: Look, *, is_heading: bool) -> str:
    padded = [text + " " * (width - cells(text)) for text, width in zip(row, widths, strict=False)]
    prompt = row[-1] if left is None else clipped(row[-1], left, look)
    if is_heading:
        return look.styled(_GAP.join([*padded, prompt]), "1")
    padded[_STATUS_COLUMN] = look.styled(padded[_STATUS_COLUMN], state_style(row[_STATUS_COLUMN]))
    return _GAP.join([*padded, prompt]).rstrip()


def _row(job: dict[str, Any]) -> tuple[str, ...]:
    size = f"{job['params']['width']}x{job['params']['height']}"
    return (
        short_id(job["id"]),
        status_of(job),
        age_text(age_s(job)),
        printable(job["model"]),
        size,
        progress_text(job),
        time_text(job),
        prompt_of(job),
    )


def progress_text(job: dict[str, Any]) -> str:
    """How many are before it, how many denoising steps are done, or what it failed with."""
    if job["status"] == "starting":
        return "next" if not job["queue_position"] else f"{job['queue_position']} before it"
    if job["status"] == "processing":
        return f"{job['progress']['step']}/{job['progress']['total']}"
    return job["error_code"] or "" if job["status"] == "failed" else ""


def time_text(job: dict[str, Any]) -> str:
    """What is left of an unfinished job, as far as that is known; what a finished one took."""
    if job["eta_s"] is not None:
        return f"{duration_text(job['eta_s'])} left"
    predict_time_s = job["metrics"].get("predict_time")
    return "" if predict_time_s is None else f"{predict_time_s:.1f} s"


def age_s(job: dict[str, Any]) -> float:
    """Seconds since it was accepted."""
    return (datetime.now(UTC) - datetime.fromisoformat(job["created_at"])).total_seconds()


def job_facts(job: dict[str, Any]) -> list[tuple[str, str]]:
    """Everything that a person may want to know of one job, as names and texts."""
    params, times = job["params"], (("accepted", "created_at"), ("began", "started_at"), ("ended", "completed_at"))
    status = ", ".join(text for text in (status_of(job), progress_text(job), time_text(job)) if text)
    facts = [
        ("id", job["id"]),
        ("status", status),
        ("model", job["model"]),
        ("prompt", prompt_of(job)),
        ("not", params["negative_prompt"] or ""),
        ("size", f"{params['width']}x{params['height']}"),
        ("images", str(params["num_images"])),
        ("seed", str(job["seed"])),
        ("steps", str(params["num_inference_steps"])),
        ("guidance", "" if params["guidance_scale"] is None else f"{params['guidance_scale']:g}"),
        *((name, job[member] or "") for name, member in times),
        ("attempt", str(job["attempt"]) if job["attempt"] > 1 else ""),
        ("error", job["error"] or ""),
        *(("warning", text) for text in job["warnings"]),
        *(("picture", url) for url in job["output"] or ()),
    ]
    return [(name, printable(text)) for name, text in facts if text]
