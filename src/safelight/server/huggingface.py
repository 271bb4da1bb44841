"""Hugging Face's inference convention: JSON in, the picture itself out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import pybase64
from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field

from safelight.errors import InvalidSize
from safelight.model_card import ModelCard
from safelight.params import ImageFormat
from safelight.server.callers import idempotency_of, on_disconnect_of
from safelight.server.files import picture_response
from safelight.server.follow import OnDisconnect, follow
from safelight.server.front import Front
from safelight.server.generation_request import GenerationRequest, params_of
from safelight.server.served_model import ServedModel
from safelight.server.strict_json import StrictJSONRequest
from safelight.server.submission import submit
from safelight.server.uploads import is_picture, read_base64_upload

_DATA_URI = "data:image/png;base64,"
_ACCEPTED = {"image/jpeg": ImageFormat.JPEG, "image/webp": ImageFormat.WEBP}


class TargetSize(BaseModel):
    """As the clients of image tasks send it."""

    width: int
    height: int


class InferenceParameters(GenerationRequest):
    """The prompt is ``inputs``; ``scheduler`` is accepted, FLUX has one only."""

    prompt: str = ""
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    target_size: TargetSize | None = None
    scheduler: str | None = None


class InferenceRequest(BaseModel):
    """``inputs`` is the prompt, or a picture as base64 if ``parameters`` has a prompt. ``options`` (``wait_for_model``,
    ``use_cache``) have no effect: the server always waits, and never caches.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    inputs: str
    parameters: InferenceParameters | None = None
    options: dict[str, Any] | None = None


class PictureOrJSONRequest(StrictJSONRequest):
    """A picture without parameters comes as it is, without a content type: it counts as JSON that has it inside."""

    async def json(self) -> Any:
        body = await self.body()
        if not is_picture(body):
            return await super().json()
        return {"inputs": _DATA_URI + (await asyncio.to_thread(pybase64.b64encode, body)).decode()}


class PictureOrJSONRoute(APIRoute):
    """A route whose requests are ``PictureOrJSONRequest``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            request = PictureOrJSONRequest(dict(request.scope), request.receive)
            if is_picture(await request.body()):
                kept = [entry for entry in request.scope["headers"] if entry[0] != b"content-type"]
                request.scope["headers"] = [*kept, (b"content-type", b"application/json")]
            return await handler(request)

        return handle


def routes(front: Front) -> APIRouter:
    """``InferenceClient(base_url=...)`` posts to exactly the address that it was given, so there are three."""
    router = APIRouter(tags=["hugging face"], route_class=PictureOrJSONRoute)

    @router.post("/models/{model_id:path}", response_class=Response)
    async def infer(model_id: str, body: InferenceRequest, request: Request) -> Response:
        """One picture by the model of that name."""
        return await _infer(front, await front.models.wait_for(model_id), body, request)

    @router.post("/hf/image-to-image", response_class=Response)
    @router.post("/hf/text-to-image", response_class=Response)
    @router.post("/", response_class=Response)
    async def infer_here(body: InferenceRequest, request: Request) -> Response:
        """One picture by the default model."""
        return await _infer(front, await front.models.wait_for(None), body, request)

    return router


async def _infer(front: Front, model: ServedModel, body: InferenceRequest, request: Request) -> Response:
    card = model.card
    asked, upload = body.parameters or InferenceParameters(), None
    if asked.prompt or body.inputs.startswith(_DATA_URI):
        wants_size = asked.target_size or asked.width or asked.height
        size = _size(asked, card) if wants_size else None
        upload = await read_base64_upload(card, body.inputs, None, asked.strength, size)
    else:
        asked = asked.model_copy(update={"prompt": body.inputs})
    output_format = _ACCEPTED.get(request.headers.get("accept", ""), ImageFormat.PNG)
    size = upload.size if upload else _size(asked, card)
    params = params_of(asked, card, size, None, output_format, None, upload=upload)
    key = await idempotency_of(request)
    on_disconnect = on_disconnect_of(request, OnDisconnect.KEEP if key else OnDisconnect.CANCEL)
    job = await submit(front, request, model, "huggingface", params, key, upload=upload)
    await follow(request, front.dispatcher, job, on_disconnect)
    job.raise_unless_succeeded()
    return await picture_response(front, job, 0)


def _size(asked: InferenceParameters, card: ModelCard) -> tuple[int, int]:
    size = asked.target_size
    if size and (asked.width or size.width, asked.height or size.height) != (size.width, size.height):
        raise InvalidSize("target_size and width x height do not agree", param="parameters.target_size")
    width = asked.width if asked.width is not None else size.width if size else card.default_width
    height = asked.height if asked.height is not None else size.height if size else card.default_height
    return width, height
