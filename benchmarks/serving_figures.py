"""The measurements of ``bench_serving``: load at a rate, bursts, and what serving adds to the engine's own time."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.latency import median_and_worst, percentile
from benchmarks.live_server import LiveServer, gained
from benchmarks.load_client import Answered, send_all
from benchmarks.reference import Reference
from benchmarks.traffic import Asked

_REFUSED = "429"
_PERCENTS = (50, 90, 99)
_STAGES = "safelight_stage_seconds_sum "
_ENGINE_STAGE, _ENCODING_STAGE = "generate", "encode"
_SHARED_STEPS = "safelight_batch_jobs"

Figures = dict[str, Any]


def measure_reference(reference: Reference, arguments: Sequence[Mapping[str, Any]]) -> Figures:
    """The same pictures one after another with diffusers: seconds of the calls alone."""
    seconds = sum(reference.draw(arguments))
    return {"seconds": round(seconds, 3), "images_per_s": round(len(arguments) / seconds, 3)}


def measure_rate(server: LiveServer, plan: Sequence[Asked], seconds: float, timeout_s: float) -> Figures:
    """Requests at random times over ``seconds``; throughput includes the time that the last answers take beyond."""
    cpu_s, start_s = time.process_time(), time.monotonic()
    answers, shared = _under_load(server, plan, timeout_s)
    cpu_share = (time.process_time() - cpu_s) / (time.monotonic() - start_s)
    pictures = [answer for answer in answers if answer.outcome == "ok"]
    previews = [answer.first_preview_s for answer in pictures if answer.first_preview_s is not None]
    ends_s = [asked.due_s + answer.latency_s for asked, answer in zip(plan, answers, strict=True)]
    return {
        "seconds": seconds,
        "requests": len(plan),
        "offered_per_s": round(len(plan) / seconds, 3),
        "images_per_s": round(len(pictures) / max(seconds, *ends_s, 0.0), 3),
        "latency_s": spread([answer.latency_s for answer in pictures]),
        "first_preview_s": spread(previews),
        "previews": len(previews),
        **_outcomes(answers),
        "batch_jobs_mean": shared,
        "client": {"late_s": spread([answer.late_s for answer in answers]), "cpu_share": round(cpu_share, 3)},
    }


def measure_burst(server: LiveServer, plan: Sequence[Asked], timeout_s: float) -> Figures:
    """Requests that come at once: seconds until the last of them is answered."""
    answers, shared = _under_load(server, plan, timeout_s)
    seconds = max(answer.latency_s for answer in answers)
    outcomes = _outcomes(answers)
    count = len(plan) - outcomes["refused"] - outcomes["failed"]
    return {
        "seconds": round(seconds, 3),
        "images_per_s": round(count / seconds, 3),
        **outcomes,
        "batch_jobs_mean": shared,
        "client_late_s": round(max(answer.late_s for answer in answers), 4),
    }


def _under_load(server: LiveServer, plan: Sequence[Asked], timeout_s: float) -> tuple[list[Answered], float | None]:
    """The answers, and how many jobs shared a step on average, if the server tells."""
    server.wait_until_idle()
    before = server.totals()
    answers = send_all(server.url, plan, timeout_s)
    after = server.totals()
    jobs, steps = (gained(before, after, f"{_SHARED_STEPS}_{total}") for total in ("sum", "count"))
    return answers, round(jobs / steps, 2) if jobs and steps else None


def _outcomes(answers: Sequence[Answered]) -> Figures:
    """``refused`` is 429; ``failures`` says of what kind the others were."""
    counts = Counter(answer.outcome for answer in answers)
    failures = {outcome: count for outcome, count in counts.items() if outcome not in ("ok", _REFUSED)}
    return {"refused": counts[_REFUSED], "failed": sum(failures.values()), "failures": failures}


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """p50, p90, p99 and max, ``None`` of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    ranks = {f"p{percent}": round(percentile(ordered, percent), 4) for percent in _PERCENTS}
    return ranks | {"max": round(ordered[-1], 4)}


def measure_overhead(server: LiveServer, plan: Sequence[Asked]) -> Figures:
    """One request after the other, each with what the server itself says of its time; medians and worst."""
    server.wait_until_idle()
    pictures = [_picture_seconds(server, asked) for asked in plan]
    names = [name for name in pictures[0] if all(name in picture for picture in pictures)]
    seconds = {name: median_and_worst([picture[name] for picture in pictures]) for name in names}
    # Of each picture by itself: a difference of medians would mix pictures.
    added_ms = {
        "overhead_ms": [picture["end_to_end"] - picture["engine"] for picture in pictures],
        "http_ms": [picture["end_to_end"] - picture["queue"] - picture["predict"] for picture in pictures],
    }
    medians_ms = {name: round(1000 * statistics.median(values), 1) for name, values in added_ms.items()}
    return {"images": len(plan), **medians_ms, "seconds": seconds}


def _picture_seconds(server: LiveServer, asked: Asked) -> dict[str, float]:
    before = server.totals()
    drawn = server.draw(asked)
    stages = _stages(before, server.totals())
    job = server.job_seconds(drawn.job_id)
    without_encoding = sum(value for name, value in stages.items() if name != _ENCODING_STAGE)
    return {
        "end_to_end": drawn.seconds,
        "engine": stages.get(_ENGINE_STAGE, without_encoding or job["predict_time"]),
        "queue": job["queue_time"],
        "predict": job["predict_time"],
        **{f"stage {name}": value for name, value in stages.items()},
    }


def _stages(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    names = [name for name in after if name.startswith(_STAGES)]
    return {name.removeprefix(_STAGES): after[name] - before.get(name, 0.0) for name in names}
