"""What the job API is asked with: Replicate's members for FLUX, and Safelight's extensions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from safelight.errors import InvalidValue
from safelight.jobs import COMPLETED, Webhook
from safelight.model_card import ModelCard
from safelight.params import MAX_IMAGES, MAX_PARTIAL_IMAGES, GenerationParams, ImageFormat
from safelight.server.aspect import MEGAPIXEL, RATIO, asked_size, sized
from safelight.server.front import Front
from safelight.server.generation_request import GenerationRequest, params_of
from safelight.server.outbound import check_url
from safelight.server.uploads import Upload, read_base64_upload

_FORMATS = {"png": ImageFormat.PNG, "jpg": ImageFormat.JPEG, "jpeg": ImageFormat.JPEG, "webp": ImageFormat.WEBP}

_PICTURES = ("image", "input_image", "mask")
_LIKE_IMAGE, _AREA_LIKE_IMAGE = "match_input_image", "match_input"


class PredictionInput(GenerationRequest):
    """Sizes come as width and height, or as aspect_ratio and megapixels."""

    aspect_ratio: Annotated[str, Field(pattern=f"^({_LIKE_IMAGE}|{RATIO})$")] | None = None
    megapixels: Literal["1", "0.25", "match_input"] | None = Field(
        None, description="area of an image; the model's own by default"
    )
    num_outputs: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    output_format: Literal["png", "jpg", "jpeg", "webp"] | None = None
    output_quality: Annotated[int, Field(ge=0, le=100)] | None = None
    partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIAL_IMAGES)] | None = Field(
        None, description="how often each image is shown while it is unfinished"
    )
    image: str | None = Field(None, description="a picture to change, as a data: URI")
    input_image: str | None = Field(None, description="the same")
    mask: str | None = Field(None, description="where it may change: transparent or white; a data: URI")
    prompt_strength: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="how much may change")
    go_fast: bool | None = Field(None, description="has no effect here")
    disable_safety_checker: bool | None = Field(None, description="has no effect: there is no safety checker here")


class PredictionRequest(BaseModel):
    """What to draw, with which model, and whom to tell."""

    model_config = ConfigDict(strict=True, extra="forbid")

    input: PredictionInput
    version: str | None = None
    model: str | None = None
    id: str | None = Field(None, description="cog's clients repeat the id of a PUT here")
    stream: bool | None = Field(None, description="has no effect: urls.stream is always there")
    webhook: str | None = Field(
        None,
        description="address that is told how the job is",
        json_schema_extra={"anyOf": [{"type": "string", "pattern": "^https?://"}, {"type": "null"}]},
    )
    webhook_events_filter: list[Literal["start", "output", "logs", "completed"]] | None = None


async def prediction_params(asked: PredictionInput, card: ModelCard) -> tuple[GenerationParams, Upload | None]:
    """Raises a leaf of ``InvalidRequest``."""
    ratio = None if asked.aspect_ratio == _LIKE_IMAGE else asked.aspect_ratio
    area = None if asked.megapixels in (None, _AREA_LIKE_IMAGE) else float(asked.megapixels) * MEGAPIXEL
    upload = await _upload(asked, card, asked_size(card, asked.width, asked.height, ratio, area))
    params = params_of(
        asked,
        card,
        upload.size if upload else sized(card, asked.width, asked.height, ratio, area),
        asked.num_outputs,
        _FORMATS[asked.output_format or "png"],
        asked.output_quality,
        asked.partial_images or 0,
        upload,
    )
    return params, upload


async def _upload(asked: PredictionInput, card: ModelCard, size: tuple[int, int] | None) -> Upload | None:
    if asked.image is not None and asked.input_image is not None:
        raise InvalidValue("image and input_image were both given: give one of them", param="input_image")
    image = asked.input_image if asked.image is None else asked.image
    if image is not None:
        strength = asked.prompt_strength
        return await read_base64_upload(card, image, asked.mask, strength, size, strength_name="prompt_strength")
    if asked.mask is not None or asked.prompt_strength is not None:
        raise InvalidValue("mask and prompt_strength need an image", param="image")
    return None


def webhook_of(front: Front, body: PredictionRequest, request: Request) -> Webhook | None:
    """Raises ``InvalidValue`` for an address that will never be asked."""
    if not body.webhook:
        return None
    check_url(body.webhook, may_be_private=front.config.private_webhooks)
    events = body.webhook_events_filter
    return Webhook(body.webhook, ["start", "logs", COMPLETED] if events is None else list(events), base_url(request))


def base_url(request: Request) -> str:
    """Scheme, host and port under which the caller reached this server."""
    return str(request.base_url).rstrip("/")


def written_by_caller(body: PredictionRequest) -> dict[str, Any]:
    """The input as the caller wrote it, for answers that repeat it; of pictures only that there were some."""
    written = body.input.model_dump(exclude_none=True)
    return written | {
        name: f"({len(written[name])} characters)" for name in ("image", "input_image", "mask") if name in written
    }
