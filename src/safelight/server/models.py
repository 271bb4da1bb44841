"""``/v1/models``: OpenAI's list, with what each model can do and how it stands; and what operators may do with one."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from safelight.server.front import Front
from safelight.server.model_status import model_entry, model_list


def routes(front: Front) -> APIRouter:
    """Ids may hold slashes, also percent-encoded ones, so they are paths; what ends like a route is one."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("")
    async def list_models() -> dict[str, Any]:
        """The models that can be asked for, the default first."""
        return {"object": "list", "data": _entries(front)}

    @router.get("/{model_id:path}/ready")
    async def model_ready(model_id: str) -> JSONResponse:
        """200 while a device that has this model takes jobs; 503 also while it is unloaded, though jobs load it."""
        model = front.models.listed(model_id)
        is_ready = front.is_model_ready(model)
        return JSONResponse(model_entry(model, front.workers, front.queue), 200 if is_ready else 503)

    @router.get("/{model_id:path}")
    async def get_model(model_id: str) -> dict[str, Any]:
        """One model, 404 if it is not served here."""
        for entry in _entries(front):
            if entry["id"] == model_id:
                return entry
        return model_entry(front.models.listed(model_id), front.workers, front.queue)

    _add_orders(router, front)
    return router


def _entries(front: Front) -> list[dict[str, Any]]:
    return model_list(front.models, front.workers, front.queue, front.config.model_aliases)


def _add_orders(router: APIRouter, front: Front) -> None:
    """All answer with the status, which goes on to change."""

    @router.post("/{model_id:path}/load", status_code=202)
    async def load_model(model_id: str) -> dict[str, Any]:
        """Has a device load the model, or tries again where that has failed."""
        front.placement.load(front.models.listed(model_id))
        return front.status()

    @router.post("/{model_id:path}/unload", status_code=202)
    async def unload_model(model_id: str) -> dict[str, Any]:
        """Has all devices let go of the model once its jobs there are done; the next job brings it back."""
        front.placement.unload(front.models.listed(model_id))
        return front.status()

    @router.post("/{model_id:path}/pin", status_code=202)
    async def pin_model(model_id: str) -> dict[str, Any]:
        """Has a device load the model and keep it, until it is unpinned or the server ends."""
        front.placement.pin(front.models.listed(model_id), is_pinned=True)
        return front.status()

    @router.post("/{model_id:path}/unpin", status_code=202)
    async def unpin_model(model_id: str) -> dict[str, Any]:
        """The model may be replaced or unloaded again."""
        front.placement.pin(front.models.listed(model_id), is_pinned=False)
        return front.status()
