"""What the job API is asked with: Replicate's members for FLUX, and Safelight's extensions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field

from safelight.errors import InvalidValue
from safelight.jobs import COMPLETED, Webhook
from safelight.model_card import ModelCard
from safelight.params import MAX_IMAGES, MAX_PARTIAL_IMAGES, GenerationParams, ImageFormat
from safelight.server.aspect import MEGAPIXEL, sized
from safelight.server.front import Front
from safelight.server.generation_request import GenerationRequest, params_of
from safelight.server.outbound import check_url
from safelight.server.uploads import Upload, read_base64_upload

_FORMATS = {"png": ImageFormat.PNG, "jpg": ImageFormat.JPEG, "jpeg": ImageFormat.JPEG, "webp": ImageFormat.WEBP}


class PredictionInput(GenerationRequest):
    """Sizes come as width and height, or as aspect_ratio and megapixels."""

    aspect_ratio: Annotated[str, Field(pattern=r"^[1-9][0-9]?:[1-9][0-9]?$")] | None = None
    megapixels: Literal["1", "0.25"] | None = Field(None, description="area of an image; the model's own by default")
    num_outputs: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    output_format: Literal["png", "jpg", "jpeg", "webp"] | None = None
    output_quality: Annotated[int, Field(ge=0, le=100)] | None = None
    partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIAL_IMAGES)] | None = Field(
        None, description="how often each image is shown while it is unfinished"
    )
    image: str | None = Field(None, description="a picture to change, as a data: URI")
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
    area = None if asked.megapixels is None else float(asked.megapixels) * MEGAPIXEL
    size: tuple[int, int] | None = sized(card, asked.width, asked.height, asked.aspect_ratio, area)
    upload = None
    if asked.image is not None:
        if all(member is None for member in (asked.width, asked.height, asked.aspect_ratio, area)):
            size = None
        upload = await read_base64_upload(card, asked.image, asked.mask, asked.prompt_strength, size)
        size = upload.size
    elif asked.mask is not None or asked.prompt_strength is not None:
        raise InvalidValue("mask and prompt_strength need an image", param="image")
    assert size is not None
    params = params_of(
        asked,
        card,
        size,
        asked.num_outputs,
        _FORMATS[asked.output_format or "png"],
        asked.output_quality,
        asked.partial_images or 0,
        upload,
    )
    return params, upload


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
    return written | {name: f"({len(written[name])} characters)" for name in ("image", "mask") if name in written}
