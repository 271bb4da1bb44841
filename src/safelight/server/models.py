"""``/v1/models``: OpenAI's list, with what the model can do; and a second try for a load that failed."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from safelight.errors import ModelNotFound
from safelight.server.front import Front


def routes(front: Front) -> APIRouter:
    """Ids may hold slashes, also percent-encoded ones, so they are paths."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("")
    async def list_models() -> dict[str, Any]:
        """The models that can be asked for."""
        return {"object": "list", "data": front.model_list()}

    @router.get("/{model_id:path}")
    async def get_model(model_id: str) -> dict[str, Any]:
        """One model, 404 if it is not served here."""
        for entry in front.model_list():
            if model_id in (entry["id"], front.config.model):
                return entry
        raise ModelNotFound(f"the model {model_id!r} is not served here", param="model")

    @router.post("/{model_id:path}/load", status_code=202)
    async def load_model(model_id: str) -> dict[str, Any]:
        """Tries again to load after a failure; the answer is the status, which goes on to change."""
        front.load(model_id)
        return front.status()

    return router
