"""The job API in Replicate's shapes: create, wait, get, list, cancel, and the pictures of a job.

A job can be seen by who made it only: for everyone else it does not exist.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from safelight.errors import InvalidValue, LoadError, NotFound, ShuttingDown, UnsupportedValue
from safelight.jobs import Job
from safelight.params import MAX_IMAGES, ImageFormat
from safelight.server.aspect import MEGAPIXEL, sized
from safelight.server.callers import idempotency_of, on_disconnect_of, owner_of, wait_of
from safelight.server.database import IdempotencyKey
from safelight.server.files import picture_response
from safelight.server.follow import OnDisconnect, follow
from safelight.server.front import Front
from safelight.server.generation_request import GenerationRequest, params_of
from safelight.server.prediction import prediction
from safelight.server.strict_json import StrictJSONRoute
from safelight.server.submission import submit

_PAGE_COUNT = 100
_CANCEL_WAIT_S = 2.0
_FORMATS = {"png": ImageFormat.PNG, "jpg": ImageFormat.JPEG, "jpeg": ImageFormat.JPEG, "webp": ImageFormat.WEBP}

ClientId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class PredictionInput(GenerationRequest):
    """Replicate's members for FLUX and Safelight's extensions."""

    aspect_ratio: Annotated[str, Field(pattern=r"^[1-9][0-9]?:[1-9][0-9]?$")] | None = None
    megapixels: Literal["1", "0.25"] | None = Field(None, description="area of an image; the model's own by default")
    num_outputs: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    output_format: Literal["png", "jpg", "jpeg", "webp"] | None = None
    output_quality: Annotated[int, Field(ge=0, le=100)] | None = None
    go_fast: bool | None = Field(None, description="has no effect here")
    disable_safety_checker: bool | None = Field(None, description="has no effect: there is no safety checker here")


class PredictionRequest(BaseModel):
    """What to draw, with which model."""

    model_config = ConfigDict(strict=True, extra="forbid")

    input: PredictionInput
    version: str | None = None
    model: str | None = None
    id: str | None = Field(None, description="cog's clients repeat the id of a PUT here")
    stream: bool | None = None
    webhook: str | None = None
    webhook_events_filter: list[str] | None = None


def routes(front: Front) -> APIRouter:
    """Every route is a thin layer over one job."""
    router = APIRouter(prefix="/v1", tags=["predictions"], route_class=StrictJSONRoute)

    @router.post("/predictions", status_code=201)
    async def create(body: PredictionRequest, request: Request) -> Response:
        """Accepts a job. ``Prefer: wait=N`` waits up to N seconds for its end; ``respond-async`` answers 202."""
        return await _create(front, body, request, await idempotency_of(request))

    @router.post("/models/{owner}/{name}/predictions", status_code=201)
    async def create_for_model(owner: str, name: str, body: PredictionRequest, request: Request) -> Response:
        """As ``POST /v1/predictions``, for the model of that name."""
        await front.model.wait_for_card()
        front.model.check_name(f"{owner}/{name}")
        return await _create(front, body, request, await idempotency_of(request))

    @router.put("/predictions/{prediction_id}", status_code=201)
    async def put(prediction_id: ClientId, body: PredictionRequest, request: Request) -> Response:
        """As ``POST``, under the caller's own id: repeated, it returns the same job."""
        if body.id not in (None, prediction_id):
            raise InvalidValue("id in the body is not the id in the path", param="id")
        key = await idempotency_of(request, prediction_id)
        return await _create(front, body, request, key, client_id=prediction_id)

    @router.get("/predictions")
    async def list_predictions(request: Request, cursor: str | None = None) -> dict[str, Any]:
        """The caller's jobs, newest first, a hundred at a time."""
        jobs = await front.ledger.page(owner_of(request), _decode_cursor(cursor), _PAGE_COUNT)
        following = f"{_base(request)}/v1/predictions?cursor={_encode_cursor(jobs[-1])}" if _is_full(jobs) else None
        return {"next": following, "previous": None, "results": [_shown(front, job, request) for job in jobs]}

    @router.get("/predictions/{prediction_id}")
    async def get(prediction_id: str, request: Request) -> dict[str, Any]:
        """One job, as it stands now."""
        return _shown(front, await _find(front, prediction_id, request), request)

    @router.post("/predictions/{prediction_id}/cancel")
    async def cancel(prediction_id: str, request: Request) -> dict[str, Any]:
        """Cancels a waiting job at once, a running one at its next step; a finished one is returned unchanged."""
        job = await _find(front, prediction_id, request)
        with contextlib.suppress(TimeoutError):  # it goes on by itself once the disk takes it
            async with asyncio.timeout(_CANCEL_WAIT_S):
                await front.dispatcher.cancel(job)
        await follow(request, front.dispatcher, job, OnDisconnect.KEEP, _CANCEL_WAIT_S)
        return _shown(front, job, request)

    @router.get("/predictions/{prediction_id}/output/{index}", response_class=Response)
    async def output(prediction_id: str, index: int, request: Request) -> Response:
        """One picture of a job that succeeded."""
        return await picture_response(front, await _find(front, prediction_id, request), index)

    return router


async def _create(
    front: Front, body: PredictionRequest, request: Request, key: IdempotencyKey | None, client_id: str = ""
) -> Response:
    card = await front.model.wait_for_card()
    for name in (body.version, body.model):
        front.model.check_name(name)
    _refuse_unsupported(body)
    asked = body.input
    output_format = _FORMATS[asked.output_format or "png"]
    area = None if asked.megapixels is None else float(asked.megapixels) * MEGAPIXEL
    size = sized(card, asked.width, asked.height, asked.aspect_ratio, area)
    params = params_of(asked, card, size, asked.num_outputs, output_format, asked.output_quality)
    wait_s = wait_of(request)
    on_disconnect = on_disconnect_of(request, OnDisconnect.KEEP)
    job = await submit(
        front, request, "predictions", params, key, asked.model_dump(exclude_none=True), client_id=client_id
    )
    if wait_s:
        # Nobody works on it now, but it is accepted and will be done: that is an answer, not an error.
        with contextlib.suppress(ShuttingDown, LoadError):
            await follow(request, front.dispatcher, job, on_disconnect, wait_s)
    return _created(front, job, request, wait_s)


def _created(front: Front, job: Job, request: Request, wait_s: float | None) -> JSONResponse:
    shown = _shown(front, job, request)
    if not job.status.is_terminal:
        # Replicate's SDKs poll on from this status only; every other one they take for the end.
        shown["status"] = "starting"
    headers = {"x-job-id": job.id, "location": shown["urls"]["get"]}
    if wait_s is not None:
        headers["preference-applied"] = f"wait={wait_s:.0f}" if wait_s else "respond-async"
    if wait_s == 0:
        return JSONResponse(shown, 202, headers)
    return JSONResponse(shown, 200 if request.method == "PUT" and job.status.is_terminal else 201, headers)


def _refuse_unsupported(body: PredictionRequest) -> None:
    for name, value in (("stream", body.stream), ("webhook", body.webhook)):
        if value:
            raise UnsupportedValue(f"{name} is not offered: ask without it", param=name)


async def _find(front: Front, prediction_id: str, request: Request) -> Job:
    job = await front.ledger.find(prediction_id, owner_of(request))
    if job is None:
        raise NotFound(f"there is no job {prediction_id!r}")
    return job


def _shown(front: Front, job: Job, request: Request) -> dict[str, Any]:
    dispatcher = front.dispatcher
    base_url = _base(request)
    output = [base_url + front.links.path(job.id, index) for index in range(job.params.num_images)]
    return prediction(job, front.model.name, base_url, output, dispatcher.position(job), dispatcher.eta_s(job))


def _base(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _is_full(jobs: list[Job]) -> bool:
    return len(jobs) == _PAGE_COUNT


def _encode_cursor(job: Job) -> str:
    return base64.urlsafe_b64encode(f"{job.created_s!r} {job.id}".encode()).decode()


def _decode_cursor(cursor: str | None) -> tuple[float, str]:
    if cursor is None:
        return float("inf"), ""
    try:
        created_s, _, job_id = base64.urlsafe_b64decode(cursor).decode().partition(" ")
        return float(created_s), job_id
    except (ValueError, binascii.Error):
        raise InvalidValue("cursor is not one that this server gave", param="cursor") from None
