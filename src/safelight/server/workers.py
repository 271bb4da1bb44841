"""``/v1/workers``: what operators may do with workers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from safelight.errors import InvalidValue, NotFound
from safelight.server.front import Front
from safelight.server.served_model import ServedModel
from safelight.server.worker import Worker


def routes(front: Front) -> APIRouter:
    """Both answer with the status, which goes on to change."""
    router = APIRouter(prefix="/v1/workers", tags=["workers"])

    @router.post("/restart", status_code=202)
    async def restart_workers(model: str | None = None) -> dict[str, Any]:
        """Gives each worker a new process, one after the other; with a model, workers that have another go to it."""
        wanted = _listed(front, model)
        front.rollout.order([worker for worker in front.workers if front.placement.may_give_up(worker, wanted)], wanted)
        return front.status()

    @router.post("/{worker_id}/restart", status_code=202)
    async def restart_worker(worker_id: str, model: str | None = None) -> dict[str, Any]:
        """Gives one worker a new process, once another one serves."""
        worker, wanted = _worker(front, worker_id), _listed(front, model)
        if not front.placement.may_give_up(worker, wanted):
            raise InvalidValue(f"worker {worker_id} keeps a pinned model: unpin it first", param="model")
        front.rollout.order([worker], wanted)
        return front.status()

    return router


def _listed(front: Front, model: str | None) -> ServedModel | None:
    return None if model is None else front.models.listed(model)


def _worker(front: Front, worker_id: str) -> Worker:
    for worker in front.workers:
        if str(worker.id) == worker_id:
            return worker
    raise NotFound(f"there is no worker {worker_id!r}: they are called 0 to {len(front.workers) - 1}")
