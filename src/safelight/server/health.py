"""Probes: is the loop alive, may traffic come, did it ever work; and the whole state, once or as a stream."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from safelight.server.callers import is_known
from safelight.server.event_stream import event_stream
from safelight.server.front import Front
from safelight.server.metrics import CONTENT_TYPE
from safelight.server.status import ServerStatus
from safelight.server.worker_state import WorkerState

_COG_STATUS = {
    ServerStatus.LOADING: "STARTING",
    ServerStatus.WARMING: "STARTING",
    ServerStatus.READY: "READY",
    ServerStatus.DEGRADED: "READY",
    ServerStatus.DRAINING: "DEFUNCT",
    ServerStatus.FAILED: "SETUP_FAILED",
}
_RETRY_AFTER_S = {ServerStatus.FAILED: 30, ServerStatus.DRAINING: 5}


def routes(front: Front) -> APIRouter:
    """``/livez``, ``/readyz``, ``/startupz`` with their aliases, ``/v1/status`` and its stream, ``/metrics``."""
    router = APIRouter(tags=["health"])

    @router.head("/livez", include_in_schema=False)
    @router.head("/health", include_in_schema=False)
    @router.head("/ping", include_in_schema=False)
    @router.get("/livez")
    @router.get("/health", include_in_schema=False)
    @router.get("/ping", include_in_schema=False)
    @router.get("/v2/health/live", include_in_schema=False)
    async def livez() -> dict[str, str]:
        """200 as long as the event loop turns, whatever the model does."""
        return {"status": "alive"}

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz")
    @router.get("/v2/health/ready", include_in_schema=False)
    async def readyz(request: Request) -> JSONResponse:
        """200 only while jobs are taken and stored, and the server does not drain; the body says what is missing.

        It stays 200 while a worker goes from one model to another, or has unloaded its model for want of jobs.
        """
        return _probe(front, request, ok=front.is_ready)

    @router.head("/startupz", include_in_schema=False)
    @router.get("/startupz")
    async def startupz(request: Request) -> JSONResponse:
        """200 from the first warm-up image on."""
        return _probe(front, request, ok=front.has_started)

    @router.get("/health-check")
    async def health_check() -> dict[str, str]:
        """As cog's servers say it."""
        is_busy = all(worker.state is WorkerState.BUSY for worker in front.workers)
        return {"status": "BUSY" if is_busy else _COG_STATUS[front.state]}

    @router.get("/v1/status")
    async def status() -> dict[str, Any]:
        """Status, queue, and how far each worker is."""
        return front.status()

    @router.get("/v1/status/stream", response_class=StreamingResponse)
    async def status_stream(request: Request) -> StreamingResponse:
        """The same as server-sent events named ``status``: one at once, then one after each change."""
        return event_stream(front.status_feed.events())

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters, gauges and histograms in Prometheus' text format."""
        return Response(front.metrics.page(), media_type=CONTENT_TYPE)

    return router


def _probe(front: Front, request: Request, *, ok: bool) -> JSONResponse:
    headers = {} if ok else {"retry-after": str(_RETRY_AFTER_S.get(front.state, 2))}
    body = front.status() if is_known(request) else {"status": front.state.value}
    return JSONResponse(body, status_code=200 if ok else 503, headers=headers)
