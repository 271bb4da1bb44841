"""OpenAI's Images API: ``POST /v1/images/generations``."""

from __future__ import annotations

import functools
import time
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from safelight.errors import InvalidSize, InvalidValue, UnsupportedValue
from safelight.jobs import Job, JobResult
from safelight.model_card import ModelCard
from safelight.params import MAX_IMAGES, GenerationParams, ImageFormat
from safelight.server.callers import idempotency_of, on_disconnect_of
from safelight.server.files import picture_response
from safelight.server.follow import OnDisconnect, follow
from safelight.server.front import Front
from safelight.server.generation_request import GenerationRequest, params_of
from safelight.server.images_stream import image_stream
from safelight.server.pictures import Base64, Part, json_response
from safelight.server.served_model import ServedModel
from safelight.server.strict_json import StrictJSONRoute
from safelight.server.submission import submit
from safelight.server.uploads import Upload
from safelight.setting_values import parse_size


class ImagesRequest(GenerationRequest):
    """OpenAI's members and Safelight's extensions."""

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    size: str | None = Field(None, description='"auto" or WIDTHxHEIGHT in pixels')
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = Field(
        None, json_schema_extra={"anyOf": [{"enum": ["auto", "opaque"]}, {"type": "null"}]}
    )
    quality: str | None = None
    style: str | None = None
    moderation: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = Field(None, description="only with stream")


ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            media_type: {}
            for media_type in ("application/json", "text/event-stream", *(kind.media_type for kind in ImageFormat))
        }
    }
}


def routes(front: Front) -> APIRouter:
    """One route: a thin layer over one job."""
    router = APIRouter(prefix="/v1/images", tags=["images"], route_class=StrictJSONRoute)

    @router.post("/generations", responses=ANSWERS)
    async def generate(body: ImagesRequest, request: Request) -> Response:
        """Draws ``n`` images; the answer holds each with the seed that makes it again."""
        return await draw(front, request, body, await front.models.wait_for(body.model), "image_generation")

    @router.options("/generations", include_in_schema=False)
    async def options() -> Response:
        """SillyTavern's way of asking whether anybody is there."""
        return Response(status_code=204, headers={"allow": "POST, OPTIONS"})

    return router


async def draw(
    front: Front, request: Request, body: ImagesRequest, model: ServedModel, kind: str, upload: Upload | None = None
) -> Response:
    """The answer to one request of this API; ``kind`` is how its events are called, ``upload`` what is changed."""
    card = model.card
    _refuse_unsupported(body)
    params = params_of(
        body,
        card,
        upload.size if upload else asked_size(body, card),
        body.n,
        ImageFormat(body.output_format or "png"),
        body.output_compression,
        (body.partial_images or 0) if body.stream else 0,
        upload,
    )
    wants_image = _wants_image(request, params)
    key = await idempotency_of(request)
    # Who sends a key will ask again, and then wants the picture.
    on_disconnect = on_disconnect_of(request, OnDisconnect.KEEP if key else OnDisconnect.CANCEL)
    job = await submit(front, request, model, "images", params, key, upload=upload)
    if body.stream:
        return image_stream(front, job, kind, functools.partial(_usage, card))
    await follow(request, front.dispatcher, job, on_disconnect)
    job.raise_unless_succeeded()
    if wants_image:
        return await picture_response(front, job, 0)
    return await _answer(front, request, body, job, card)


def _wants_image(request: Request, params: GenerationParams) -> bool:
    """``Accept: image/*`` asks for the picture itself: what a person with curl wants."""
    if not request.headers.get("accept", "").startswith("image/"):
        return False
    if params.num_images > 1:
        raise InvalidValue("an answer of type image/* holds one image: ask for n = 1 or for JSON", param="n")
    return True


def _refuse_unsupported(body: ImagesRequest) -> None:
    if body.partial_images and not body.stream:
        raise InvalidValue("partial_images come in a stream only: ask with stream true", param="partial_images")
    if body.background == "transparent":
        raise UnsupportedValue("background transparent is not offered: FLUX draws opaque pictures", param="background")


def asked_size(body: ImagesRequest, card: ModelCard) -> tuple[int, int]:
    """Width and height in pixels. Raises ``InvalidSize``."""
    width, height = card.default_width, card.default_height
    if body.size not in (None, "auto"):
        try:
            width, height = parse_size(str(body.size))
        except ValueError as error:
            raise InvalidSize(f"size {body.size!r} {error}", param="size") from None
        if (body.width or width, body.height or height) != (width, height):
            raise InvalidSize(f"size {body.size} and width x height do not agree", param="size")
    return width if body.width is None else body.width, height if body.height is None else body.height


def _headers(job: Job) -> dict[str, str]:
    return {"x-seed": str(job.params.seed), "x-job-id": job.id}


async def _answer(front: Front, request: Request, body: ImagesRequest, job: Job, card: ModelCard) -> Response:
    result, params = job.result, job.params
    rest = {
        "created": int(job.finished_s or time.time()),
        "background": "opaque",
        "output_format": params.output_format.value,
        "size": f"{params.width}x{params.height}",
        "usage": _usage(card, job),
        "warnings": result.warnings + _ignored(body),
        "params": params,
    }
    data = _links(front, request, job) if _wants_links(body) else _images(front, result)
    parts: list[Part] = [msgspec.json.encode(rest)[:-1], b',"data":[', *data, b"]}"]
    return await json_response(parts, _headers(job))


def _wants_links(body: ImagesRequest) -> bool:
    """What OpenAI's API did for its older models, and what clients that name them still expect."""
    return body.response_format == "url" or (body.response_format is None and (body.model or "").startswith("dall-e"))


def _links(front: Front, request: Request, job: Job) -> list[Part]:
    base_url = str(request.base_url).rstrip("/")
    entries = [
        {"url": base_url + front.links.path(job.id, index), "seed": image.seed}
        for index, image in enumerate(job.result.images)
    ]
    return [msgspec.json.encode(entries)[1:-1]]


def _images(front: Front, result: JobResult) -> list[Part]:
    parts: list[Part] = []
    for image in result.images:
        parts += [b"," if parts else b"", b'{"b64_json":"', Base64(front.store.results.path(image.file))]
        parts.append(f'","seed":{image.seed}}}'.encode())
    return parts


def _usage(card: ModelCard, job: Job) -> dict[str, Any]:
    """Tokens of the T5 encoder, and of pictures as the transformer sees them: a reference, and what was drawn."""
    params, text_tokens = job.params, job.result.text_tokens
    reference_tokens = card.picture_tokens(params.reference_size)
    drawn_tokens = params.num_images * card.picture_tokens((params.width, params.height))
    return {
        "total_tokens": text_tokens + reference_tokens + drawn_tokens,
        "input_tokens": text_tokens + reference_tokens,
        "output_tokens": drawn_tokens,
        "input_tokens_details": {"text_tokens": text_tokens, "image_tokens": reference_tokens},
        "output_tokens_details": {"text_tokens": 0, "image_tokens": drawn_tokens},
    }


def _ignored(body: ImagesRequest) -> list[str]:
    """Members that OpenAI's clients always send and that FLUX has no notion of: said, not hidden."""
    asked: dict[str, object] = {"quality": body.quality, "style": body.style, "moderation": body.moderation}
    if body.output_format in (None, "png"):
        asked["output_compression"] = body.output_compression
    return [f"{name} has no effect here" for name, value in asked.items() if value not in (None, "auto", "standard")]
