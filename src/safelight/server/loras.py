"""``/v1/loras``: the LoRA adapters that can be asked for."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from safelight.server.front import Front


def routes(front: Front) -> APIRouter:
    """One route."""
    router = APIRouter(prefix="/v1/loras", tags=["loras"])

    @router.get("")
    async def list_loras(model: str | None = None) -> dict[str, Any]:
        """Every adapter that lies there, and whether it fits the model, or without one the default."""
        served = await front.models.wait_for(model)
        return {"object": "list", "data": await front.loras.of(served).entries()}

    return router
