"""KServe's v2 protocol as far as orchestrators need it: is the model there, what is it called."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from safelight import __version__
from safelight.server.front import Front


def routes(front: Front) -> APIRouter:
    """Metadata only; ``/v2/health/*`` are aliases of the probes."""
    router = APIRouter(prefix="/v2", tags=["kserve"])

    @router.get("")
    async def server_metadata() -> dict[str, Any]:
        """Name and version of the server."""
        return {"name": "safelight", "version": __version__, "extensions": []}

    @router.get("/models/{model_id:path}/ready")
    async def model_ready(model_id: str) -> JSONResponse:
        """200 while a device that has this model takes jobs."""
        model = await front.models.wait_for(model_id)
        is_ready = front.is_model_ready(model)
        return JSONResponse({"name": model.id, "ready": is_ready}, 200 if is_ready else 503)

    @router.get("/models/{model_id:path}")
    async def model_metadata(model_id: str) -> dict[str, Any]:
        """What goes in and comes out."""
        model = await front.models.wait_for(model_id)
        return {
            "name": model.id,
            "versions": ["1"],
            "platform": "flux",
            "inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
        }

    return router
