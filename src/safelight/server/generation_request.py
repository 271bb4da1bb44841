"""What every API calls the same: the members of a request that become ``GenerationParams``."""

from __future__ import annotations

import secrets
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from safelight.errors import InvalidValue
from safelight.model_card import DEFAULT_TRUE_CFG_SCALE, ModelCard
from safelight.params import (
    MAX_LORA_SCALE,
    MAX_LORAS,
    MAX_SEED,
    GenerationParams,
    ImageFormat,
    LoraUse,
    MetadataLevel,
)
from safelight.server.uploads import Upload

_RANDOM_SEEDS = 2**32
"""Seeds we choose stay below 2**32, so that every client and JSON reader keeps them exactly."""

Number = TypeVar("Number", int, float)


class LoraRequest(BaseModel):
    """One adapter."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    name: str
    scale: Annotated[float, Field(ge=-MAX_LORA_SCALE, le=MAX_LORA_SCALE)] = Field(
        default=1.0, description="how strongly it acts"
    )


class GenerationRequest(BaseModel):
    """Strict: ``"7"``, ``true`` and NaN are not numbers. Each API adds its own names for size, count and format."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    prompt: str
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    num_inference_steps: int | None = None
    steps: int | None = Field(default=None, description="alias of num_inference_steps")
    guidance_scale: float | None = None
    guidance: float | None = Field(default=None, description="alias of guidance_scale")
    negative_prompt: str | None = None
    true_cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    max_sequence_length: int | None = None
    loras: Annotated[list[LoraRequest], Field(max_length=MAX_LORAS)] | None = Field(
        default=None, description="LoRA adapters that act together; GET /v1/loras lists them"
    )
    metadata: Literal["full", "minimal", "none"] | None = Field(
        default=None,
        description="how much the picture's file says of how it was made; that a model made it, it always says",
    )


def params_of(
    asked: GenerationRequest,
    card: ModelCard,
    size: tuple[int, int],
    num_images: int | None,
    output_format: ImageFormat,
    output_compression: int | None,
    partial_images: int = 0,
    upload: Upload | None = None,
) -> GenerationParams:
    """Fills in the model's defaults and checks against its limits. Raises a leaf of ``InvalidRequest``."""
    if asked.negative_prompt and asked.true_cfg_scale is not None and asked.true_cfg_scale <= 1:
        raise InvalidValue("a negative_prompt acts only with a true_cfg_scale above 1", param="negative_prompt")
    steps = _either("num_inference_steps", asked.num_inference_steps, "steps", asked.steps)
    guidance_scale = _either("guidance_scale", asked.guidance_scale, "guidance", asked.guidance)
    params = GenerationParams(
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt,
        width=size[0],
        height=size[1],
        num_inference_steps=_default(steps, card.default_num_inference_steps),
        guidance_scale=card.default_guidance_scale if guidance_scale is None else guidance_scale,
        true_cfg_scale=_true_cfg_scale(asked),
        max_sequence_length=_default(asked.max_sequence_length, card.max_sequence_length),
        seed=secrets.randbelow(_RANDOM_SEEDS) if asked.seed is None else asked.seed,
        num_images=_default(num_images, 1),
        output_format=output_format,
        output_compression=output_compression,
        partial_images=partial_images,
        source=None if upload is None else upload.source,
        loras=tuple(LoraUse(lora.name, lora.scale) for lora in asked.loras or ()),
        metadata=MetadataLevel(asked.metadata or MetadataLevel.FULL),
    )
    card.check(params)
    return params


def _default(value: int | None, default: int) -> int:
    return default if value is None else value


def _true_cfg_scale(asked: GenerationRequest) -> float:
    if asked.true_cfg_scale is not None:
        return asked.true_cfg_scale
    return DEFAULT_TRUE_CFG_SCALE if asked.negative_prompt else 1.0


def _either(name: str, value: Number | None, alias: str, other: Number | None) -> Number | None:
    if value is not None and other is not None:
        raise InvalidValue(f"{name} and its alias {alias} were both given: give one of them", param=alias)
    return other if value is None else value
