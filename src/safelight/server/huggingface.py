"""Hugging Face's inference convention: JSON in, the picture itself out."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from safelight.model_card import ModelCard
from safelight.params import ImageFormat
from safelight.server.callers import idempotency_of, on_disconnect_of
from safelight.server.files import picture_response
from safelight.server.follow import OnDisconnect, follow
from safelight.server.front import Front
from safelight.server.generation_request import GenerationRequest, params_of
from safelight.server.strict_json import StrictJSONRoute
from safelight.server.submission import submit

_ACCEPTED = {"image/jpeg": ImageFormat.JPEG, "image/webp": ImageFormat.WEBP}


class TargetSize(BaseModel):
    """As the clients of image tasks send it."""

    width: int
    height: int


class InferenceParameters(GenerationRequest):
    """The prompt is ``inputs``; ``scheduler`` is accepted, FLUX has one only."""

    prompt: str = ""
    target_size: TargetSize | None = None
    scheduler: str | None = None


class InferenceRequest(BaseModel):
    """``options`` (``wait_for_model``, ``use_cache``) have no effect: the server always waits, and never caches."""

    model_config = ConfigDict(strict=True, extra="forbid")

    inputs: str
    parameters: InferenceParameters | None = None
    options: dict[str, Any] | None = None


def routes(front: Front) -> APIRouter:
    """``InferenceClient(base_url=...)`` posts to exactly the address that it was given, so there are three."""
    router = APIRouter(tags=["hugging face"], route_class=StrictJSONRoute)

    @router.post("/models/{model_id:path}", response_class=Response)
    async def infer(model_id: str, body: InferenceRequest, request: Request) -> Response:
        """One picture by the model of that name."""
        await front.model.wait_for_card()
        front.model.check_name(model_id)
        return await _infer(front, body, request)

    @router.post("/hf/text-to-image", response_class=Response)
    @router.post("/", response_class=Response)
    async def infer_here(body: InferenceRequest, request: Request) -> Response:
        """One picture by the model that is served."""
        return await _infer(front, body, request)

    return router


async def _infer(front: Front, body: InferenceRequest, request: Request) -> Response:
    card = await front.model.wait_for_card()
    asked = (body.parameters or InferenceParameters()).model_copy(update={"prompt": body.inputs})
    output_format = _ACCEPTED.get(request.headers.get("accept", ""), ImageFormat.PNG)
    params = params_of(asked, card, _size(asked, card), None, output_format, None)
    key = await idempotency_of(request)
    on_disconnect = on_disconnect_of(request, OnDisconnect.KEEP if key else OnDisconnect.CANCEL)
    job = await submit(front, request, "huggingface", params, key)
    await follow(request, front.dispatcher, job, on_disconnect)
    job.raise_unless_succeeded()
    return await picture_response(front, job, 0)


def _size(asked: InferenceParameters, card: ModelCard) -> tuple[int, int]:
    size = asked.target_size
    width = asked.width if asked.width is not None else size.width if size else card.default_width
    height = asked.height if asked.height is not None else size.height if size else card.default_height
    return width, height
