"""OpenAI's Images API: ``POST /v1/images/generations``."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from safelight.config import parse_size
from safelight.errors import InvalidSize, InvalidValue, UnsupportedValue
from safelight.jobs import Job
from safelight.model_card import DEFAULT_TRUE_CFG_SCALE, ModelCard
from safelight.params import MAX_IMAGES, MAX_SEED, GenerationParams, ImageFormat
from safelight.protocol import Succeeded
from safelight.server.follow import follow
from safelight.server.front import Front
from safelight.server.request_id import request_id_of
from safelight.server.strict_json import StrictJSONRoute

_RANDOM_SEEDS = 2**32
"""Seeds we choose stay below 2**32, so that every client and JSON reader keeps them exactly."""

Number = TypeVar("Number", int, float)


class ImagesRequest(BaseModel):
    """OpenAI's members and Safelight's extensions. Strict: ``"7"``, ``true`` and NaN are not numbers."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    prompt: str
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    size: str | None = Field(None, description='"auto" or WIDTHxHEIGHT in pixels')
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    quality: str | None = None
    style: str | None = None
    moderation: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    stream: bool | None = None
    partial_images: int | None = None

    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    num_inference_steps: int | None = None
    steps: int | None = Field(None, description="alias of num_inference_steps")
    guidance_scale: float | None = None
    guidance: float | None = Field(None, description="alias of guidance_scale")
    negative_prompt: str | None = None
    true_cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    max_sequence_length: int | None = None


def routes(front: Front) -> APIRouter:
    """One route: a thin layer over one job."""
    router = APIRouter(prefix="/v1/images", tags=["images"], route_class=StrictJSONRoute)

    @router.post("/generations")
    async def generate(body: ImagesRequest, request: Request) -> Response:
        """Draws ``n`` images; the answer holds each with the seed that makes it again."""
        card = await front.model.wait_for_card()
        front.model.check_name(body.model)
        _refuse_unsupported(body)
        params = _params(body, card)
        card.check(params)
        wants_image = _wants_image(request, params)
        job = front.dispatcher.submit(params, request_id_of(request.scope))
        result = await follow(request, front.dispatcher, job)
        headers = {"x-seed": str(params.seed), "x-job-id": job.id}
        if wants_image:
            return Response(result.images[0].data, media_type=params.output_format.media_type, headers=headers)
        # Base64 of several megapixels would hold the loop for milliseconds.
        content = await asyncio.to_thread(_answer, body, job, result, card.size_multiple)
        return Response(content, media_type="application/json", headers=headers)

    return router


def _wants_image(request: Request, params: GenerationParams) -> bool:
    """``Accept: image/*`` asks for the picture itself: what a person with curl wants."""
    if not request.headers.get("accept", "").startswith("image/"):
        return False
    if params.num_images > 1:
        raise InvalidValue("an answer of type image/* holds one image: ask for n = 1 or for JSON", param="n")
    return True


def _refuse_unsupported(body: ImagesRequest) -> None:
    if body.stream or body.partial_images:
        name = "stream" if body.stream else "partial_images"
        raise UnsupportedValue(f"{name} is not offered: ask without it", param=name)
    if body.response_format == "url":
        raise UnsupportedValue("response_format url is not offered: b64_json is", param="response_format")
    if body.background == "transparent":
        raise UnsupportedValue("background transparent is not offered: FLUX draws opaque pictures", param="background")
    if body.negative_prompt and body.true_cfg_scale is not None and body.true_cfg_scale <= 1:
        raise InvalidValue("a negative_prompt acts only with a true_cfg_scale above 1", param="negative_prompt")


def _params(body: ImagesRequest, card: ModelCard) -> GenerationParams:
    width, height = _size(body, card)
    steps = _either("num_inference_steps", body.num_inference_steps, "steps", body.steps)
    guidance_scale = _either("guidance_scale", body.guidance_scale, "guidance", body.guidance)
    return GenerationParams(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        width=width,
        height=height,
        num_inference_steps=_default(steps, card.default_num_inference_steps),
        guidance_scale=card.default_guidance_scale if guidance_scale is None else guidance_scale,
        true_cfg_scale=_true_cfg_scale(body),
        max_sequence_length=_default(body.max_sequence_length, card.max_sequence_length),
        seed=secrets.randbelow(_RANDOM_SEEDS) if body.seed is None else body.seed,
        num_images=_default(body.n, 1),
        output_format=ImageFormat(body.output_format or ImageFormat.PNG),
        output_compression=body.output_compression,
    )


def _default(value: int | None, default: int) -> int:
    return default if value is None else value


def _true_cfg_scale(body: ImagesRequest) -> float:
    if body.true_cfg_scale is not None:
        return body.true_cfg_scale
    return DEFAULT_TRUE_CFG_SCALE if body.negative_prompt else 1.0


def _size(body: ImagesRequest, card: ModelCard) -> tuple[int, int]:
    width, height = card.default_width, card.default_height
    if body.size not in (None, "auto"):
        try:
            width, height = parse_size(str(body.size))
        except ValueError as error:
            raise InvalidSize(f"size {body.size!r} {error}", param="size") from None
        if (_default(body.width, width), _default(body.height, height)) != (width, height):
            raise InvalidSize(f"size {body.size} and width x height do not agree", param="size")
    return _default(body.width, width), _default(body.height, height)


def _either(name: str, value: Number | None, alias: str, other: Number | None) -> Number | None:
    if value is not None and other is not None and value != other:
        raise InvalidValue(f"{name} and its alias {alias} do not agree", param=alias)
    return other if value is None else value


def _answer(body: ImagesRequest, job: Job, result: Succeeded, size_multiple: int) -> bytes:
    params = job.params
    tokens = params.num_images * (params.width // size_multiple) * (params.height // size_multiple)
    return msgspec.json.encode(
        {
            "created": int(time.time()),
            "background": "opaque",
            "output_format": params.output_format.value,
            "size": f"{params.width}x{params.height}",
            "data": [
                {"b64_json": base64.b64encode(image.data).decode("ascii"), "seed": image.seed}
                for image in result.images
            ],
            "usage": _usage(result.text_tokens, tokens),
            "warnings": result.warnings + _ignored(body),
            "params": params,
        }
    )


def _usage(text_tokens: int, image_tokens: int) -> dict[str, Any]:
    return {
        "total_tokens": text_tokens + image_tokens,
        "input_tokens": text_tokens,
        "output_tokens": image_tokens,
        "input_tokens_details": {"text_tokens": text_tokens, "image_tokens": 0},
        "output_tokens_details": {"text_tokens": 0, "image_tokens": image_tokens},
    }


def _ignored(body: ImagesRequest) -> list[str]:
    """Members that OpenAI's clients always send and that FLUX has no notion of: said, not hidden."""
    asked: dict[str, object] = {"quality": body.quality, "style": body.style, "moderation": body.moderation}
    if body.output_format in (None, "png"):
        asked["output_compression"] = body.output_compression
    return [f"{name} has no effect here" for name, value in asked.items() if value not in (None, "auto", "standard")]
