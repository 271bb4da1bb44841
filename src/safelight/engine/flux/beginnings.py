"""What denoising begins with: noise, or a source picture under noise. diffusers' own pipelines prepare both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from safelight.engine.flux.drawing import Kept
from safelight.engine.sources import Source
from safelight.params import GenerationParams

if TYPE_CHECKING:
    from diffusers import FluxPipeline

_MASKED_FROM = 0.5


def begin_with_noise(pipeline: FluxPipeline, params: GenerationParams, seed: int) -> torch.Tensor:
    """Packed latents; a generator on the CPU gives the same on every device."""
    latents, _ids = pipeline.prepare_latents(
        1,
        pipeline.transformer.config.in_channels // 4,
        params.height,
        params.width,
        pipeline.text_encoder_2.dtype,
        pipeline.transformer.device,
        torch.Generator("cpu").manual_seed(seed),
    )
    drawn: torch.Tensor = latents
    return drawn


def begin_with_source(
    pipeline: FluxPipeline, scheduler: Any, params: GenerationParams, seed: int, source: Source
) -> tuple[torch.Tensor, Kept | None]:
    """Packed latents at the first step of ``scheduler``, and what a mask keeps."""
    from diffusers import FluxInpaintPipeline

    parts = pipeline.components | {"scheduler": scheduler}
    changing = FluxInpaintPipeline(**parts)
    generator = torch.Generator("cpu").manual_seed(seed)
    size = {"height": params.height, "width": params.width}
    channels = pipeline.transformer.config.in_channels // 4
    place = {"dtype": pipeline.text_encoder_2.dtype, "device": pipeline.transformer.device, "generator": generator}
    picture = changing.image_processor.preprocess(source.image, **size).float()
    first = scheduler.timesteps[scheduler.begin_index :][:1]
    latents, noise, kept, _ids = changing.prepare_latents(picture, first, 1, channels, **size, **place)
    if source.mask is None:
        return latents, None
    mask = changing.mask_processor.preprocess(source.mask, **size)
    hidden = picture * (mask < _MASKED_FROM)
    mask, _hidden_latents = changing.prepare_mask_latents(mask, hidden, 1, channels, 1, **size, **place)
    return latents, Kept(kept, noise, mask)
