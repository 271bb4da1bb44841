"""Black Forest Labs' API: a request that answers with where to ask for its result."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from safelight.errors import InvalidValue, NotFound, UnsupportedValue
from safelight.jobs import Job, JobError, JobStatus
from safelight.model_card import ModelCard
from safelight.params import ImageFormat
from safelight.server.aspect import RATIO, asked_size, sized
from safelight.server.callers import idempotency_of, owner_of
from safelight.server.front import Front
from safelight.server.generation_request import GenerationRequest, params_of
from safelight.server.served_model import ServedModel
from safelight.server.strict_json import StrictJSONRoute
from safelight.server.submission import submit
from safelight.server.uploads import Upload, read_base64_upload

MODELS = (
    "flux-dev",
    "flux-schnell",
    "flux-pro",
    "flux-pro-1.1",
    "flux-pro-1.1-ultra",
    "flux-kontext-pro",
    "flux-kontext-max",
    "flux-pro-1.0-fill",
)
"""Paths under ``/v1/``: each means the model of that name if one is served, else the default."""

_IMAGE_NAMES = ("input_image", "image", "image_prompt")


class FluxRequest(GenerationRequest):
    """BFL's members. Those that a model of one's own has no notion of are accepted and have no effect."""

    aspect_ratio: Annotated[str, Field(pattern=f"^{RATIO}$")] | None = None
    output_format: Literal["png", "jpeg"] | None = None
    image_prompt: str | None = Field(None, description="a picture to change, as base64")
    input_image: str | None = Field(None, description="the same, as flux-kontext calls it")
    image: str | None = Field(None, description="the same, as flux-pro-1.0-fill calls it")
    mask: str | None = Field(None, description="where it may change: transparent or white; base64")
    webhook_url: str | None = Field(None, json_schema_extra={"anyOf": [{"type": "null"}]})
    webhook_secret: str | None = None
    prompt_upsampling: bool | None = None
    safety_tolerance: int | None = None
    raw: bool | None = None


def routes(front: Front) -> APIRouter:
    """Thin: submit, and look again later."""
    router = APIRouter(prefix="/v1", tags=["bfl"], route_class=StrictJSONRoute)

    async def create(body: FluxRequest, request: Request) -> dict[str, str]:
        """Accepts a job; ``polling_url`` tells how it is."""
        model = await _model(front, request.url.path.rpartition("/")[2])
        card = model.card
        if body.webhook_url:
            raise UnsupportedValue("webhook_url is not offered: ask without it", param="webhook_url")
        output_format = ImageFormat(body.output_format or "jpeg")
        upload = await _upload(card, body)
        size = upload.size if upload else sized(card, body.width, body.height, body.aspect_ratio)
        params = params_of(body, card, size, None, output_format, None, upload=upload)
        job = await submit(front, request, model, "bfl", params, await idempotency_of(request), upload=upload)
        return {"id": job.id, "polling_url": f"{str(request.base_url).rstrip('/')}/v1/get_result?id={job.id}"}

    for model in MODELS:
        router.add_api_route(f"/{model}", create, methods=["POST"], operation_id=f"bfl_{model}")

    @router.get("/get_result")
    async def get_result(id: str, request: Request) -> JSONResponse:
        """How the job is, and where its picture is."""
        job = await front.ledger.find(id, owner_of(request))
        if job is None:
            raise NotFound(f"there is no job {id!r}")
        return JSONResponse(_result(front, job, str(request.base_url).rstrip("/")))

    return router


async def _model(front: Front, name: str) -> ServedModel:
    """The model that has this name here; without one, the default."""
    default = await front.models.wait_for(None)
    return front.models.named(name) or default


async def _upload(card: ModelCard, body: FluxRequest) -> Upload | None:
    names = [name for name in _IMAGE_NAMES if getattr(body, name) is not None]
    if len(names) > 1:
        raise InvalidValue(f"{' and '.join(names)} were both given: give one of them", param=names[1])
    if body.mask is not None and names in ([], ["image_prompt"]):
        raise InvalidValue("mask needs an image", param="image")
    if not names:
        return None
    size = asked_size(card, body.width, body.height, body.aspect_ratio)
    return await read_base64_upload(card, getattr(body, names[0]), body.mask, None, size)


def _result(front: Front, job: Job, base_url: str) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": job.id, "status": "Pending", "result": None, "details": None, "preview": None}
    shown["progress"] = round(job.step / job.params.total_steps, 4)
    if isinstance(job.outcome, JobError):
        # The only word for every bad end that its clients stop at.
        return shown | {"status": "Error", "details": {"code": job.outcome.code, "message": job.outcome.message}}
    if job.status is JobStatus.SUCCEEDED and job.started_s is not None and job.finished_s is not None:
        result = {
            "sample": base_url + front.links.path(job.id, 0),
            "prompt": job.params.prompt,
            "seed": job.params.seed,
            "start_time": job.started_s,
            "end_time": job.finished_s,
            "duration": round(job.finished_s - job.started_s, 4),
        }
        return shown | {"status": "Ready", "progress": 1.0, "result": result}
    return shown
