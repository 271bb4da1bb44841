"""The state of the server as people and probes see it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from msgspec import to_builtins

from safelight.jobs import Job
from safelight.logs import rfc3339
from safelight.server.load_state import LoadState
from safelight.server.model_instance import ModelInstance
from safelight.server.worker import Worker
from safelight.server.worker_state import WorkerState


class ServerStatus(StrEnum):
    """One word for the whole server."""

    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DEGRADED = "degraded"
    DRAINING = "draining"
    FAILED = "failed"


def overall_status(workers: Sequence[Worker], *, is_draining: bool) -> ServerStatus:
    """``degraded`` serves with fewer workers than it should; ``failed`` serves with none and waits for an operator.

    A worker without a model for want of jobs, or between two models, counts as serving: jobs are welcome.
    """
    states = {worker.state for worker in workers if not worker.takes_jobs}
    if is_draining:
        return ServerStatus.DRAINING
    if not states:
        return ServerStatus.READY if workers else ServerStatus.LOADING
    if any(worker.takes_jobs for worker in workers):
        is_hurt = any(worker.loader.is_recovering for worker in workers if not worker.takes_jobs)
        is_hurt |= bool(states & {WorkerState.FAILED, WorkerState.RESTARTING})
        return ServerStatus.DEGRADED if is_hurt else ServerStatus.READY
    if states == {WorkerState.FAILED}:
        return ServerStatus.FAILED
    return ServerStatus.WARMING if WorkerState.WARMING in states else ServerStatus.LOADING


def worker_status(worker: Worker, remaining_s: float | None = None) -> dict[str, Any]:
    """One entry of ``workers``: bytes of weights on the device, seconds of loading, the steps of running jobs;
    ``remaining_s`` is what these will still take.
    """
    load, loader = worker.load, worker.loader
    jobs = [_running_job(job) for job in worker.jobs]
    is_beside = worker.coming is not None and worker.coming is not worker.shown
    return {
        "id": worker.id,
        "device": worker.device.name,
        "node": worker.shown.node if worker.shown else None,
        "state": worker.state.value,
        "model": worker.model.id if worker.model else None,
        **_load_status(load, worker.component_bytes, is_going_on=worker.error is None),
        "coming": _coming(worker.coming) if is_beside and worker.coming else None,
        "switch": worker.switch.as_json() if worker.switch else None,
        "past_loads": [
            {
                "model": past.model,
                "ended_at": rfc3339(past.ended_s),
                "seconds": round(past.seconds, 2),
                "error": past.error,
                "lost": past.lost,
            }
            for past in loader.history.past
        ],
        "error": worker.error.message if worker.error else loader.trouble,
        "restarts": loader.restarts,
        "job": jobs[0] if jobs else None,
        "jobs": jobs,
        "remaining_s": None if remaining_s is None else round(remaining_s, 2),
        "batch_tokens": load.batch_tokens,
        "memory": _memory(load),
        "fit": load.fit
        and {**to_builtins(load.fit), "working_bytes_per_pixel": round(load.fit.working_bytes_per_pixel)},
        "warm": {f"{width}x{height}": sorted(rows) for (width, height), rows in sorted(load.warm.items())},
    }


def _memory(load: LoadState) -> dict[str, Any] | None:
    """Of the device, after the last job."""
    if (said := load.memory) is None:
        return None
    return {
        "used_bytes": said.used_bytes,
        "free_bytes": said.total_bytes - said.used_bytes,
        "total_bytes": said.total_bytes,
        "allocated_bytes": said.allocated_bytes,
        "reserved_bytes": said.reserved_bytes,
    }


def _coming(instance: ModelInstance) -> dict[str, Any]:
    """The model that loads while another one serves."""
    return {
        "device": instance.device.name,
        "state": instance.state.value,
        "model": instance.model.id,
        **_load_status(instance.load, instance.model.component_bytes, is_going_on=True),
        "error": None,
    }


def _load_status(load: LoadState, component_bytes: dict[str, int], *, is_going_on: bool) -> dict[str, Any]:
    progress, eta_s = load.progress, load.eta_s if is_going_on else None
    return {
        "phase": None if load.is_finished else progress.phase,
        "component": progress.component,
        "components_done": progress.components_done,
        "components_total": progress.components_total,
        "bytes_done": progress.bytes_done,
        "bytes_total": progress.bytes_total,
        "components": [_component(load, name, size) for name, size in component_bytes.items()],
        "eta_s": None if eta_s is None else round(eta_s, 1),
        "seconds": round(load.seconds, 2),
        "phase_seconds": {name: round(value, 3) for name, value in load.phase_seconds.items()},
    }


def _component(load: LoadState, name: str, total_bytes: int) -> dict[str, Any]:
    is_whole = load.is_finished or load.progress.phase == "warmup"
    done_bytes = total_bytes if is_whole else load.progress.component_bytes.get(name, 0)
    return {"name": name, "bytes_done": done_bytes, "bytes_total": total_bytes}


def labels_of(worker: Worker) -> tuple[str, str]:
    """What its metrics are labelled with."""
    return str(worker.id), worker.device.name


def worker_states(workers: Sequence[Worker]) -> dict[tuple[str, ...], float]:
    """For each worker and state, whether it is in it."""
    return {(*labels_of(worker), state): worker.state is state for worker in workers for state in WorkerState}


def load_seconds(workers: Sequence[Worker]) -> dict[tuple[str, ...], float]:
    """For each worker, what the phases of its last load took."""
    return {
        (*labels_of(worker), worker.model.name if worker.model else "", phase): seconds
        for worker in workers
        for phase, seconds in worker.load.phase_seconds.items()
    }


def device_memory(workers: Sequence[Worker]) -> dict[str, dict[tuple[str, ...], float]]:
    """Used and all memory of each worker's device, as it said last."""
    said = [(labels_of(worker), worker.load.memory) for worker in workers]
    return {
        "device_memory_used_bytes": {labels: memory.used_bytes for labels, memory in said if memory},
        "device_memory_bytes": {labels: memory.total_bytes for labels, memory in said if memory},
    }


def _running_job(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "request_id": job.request.request_id,
        "step": job.step,
        "total_steps": job.params.total_steps,
        "workers": list(job.workers),
    }
