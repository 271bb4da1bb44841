"""What denoising begins with: noise, or a source picture under noise; and what it sees of a picture all the time.

diffusers' own pipelines prepare it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from safelight.engine.flux.drawing import Kept
from safelight.engine.sources import Source
from safelight.params import GenerationParams

if TYPE_CHECKING:
    from diffusers import FluxPipeline

_MASKED_FROM = 0.5
_NOT_OF_FILL = ("image_encoder", "feature_extractor")


@dataclass(frozen=True, slots=True)
class Beginning:
    """Packed latents at the first step; what a mask keeps; the channels in which FLUX.1-Fill sees what stays."""

    latents: torch.Tensor
    kept: Kept | None = None
    filling: torch.Tensor | None = None


def begin(
    pipeline: FluxPipeline, scheduler: Any, params: GenerationParams, seed: int, source: Source | None
) -> Beginning:
    """For the next step of ``scheduler``; a generator on the CPU gives the same on every device."""
    config = pipeline.transformer.config
    if config.out_channels not in (None, config.in_channels):
        return _filling(pipeline, scheduler, params, seed, source or Source.to_fill(params.width, params.height))
    if source is None or params.reference_size is not None:
        return _with_noise(pipeline, params, seed)
    return _with_source(pipeline, scheduler, params, seed, source)


def _with_noise(pipeline: FluxPipeline, params: GenerationParams, seed: int) -> Beginning:
    size, place = _size(params), _place(pipeline, seed)
    latents, _ids = pipeline.prepare_latents(1, pipeline.vae.config.latent_channels, **size, **place)
    return Beginning(latents)


def _with_source(
    pipeline: FluxPipeline, scheduler: Any, params: GenerationParams, seed: int, source: Source
) -> Beginning:
    from diffusers import FluxInpaintPipeline

    changing = FluxInpaintPipeline(**pipeline.components | {"scheduler": scheduler})
    size, place = _size(params), _place(pipeline, seed)
    channels = pipeline.vae.config.latent_channels
    picture = changing.image_processor.preprocess(source.image, **size).float()
    first = scheduler.timesteps[scheduler.begin_index :][:1]
    latents, noise, kept, _ids = changing.prepare_latents(picture, first, 1, channels, **size, **place)
    if source.mask is None:
        return Beginning(latents)
    mask = changing.mask_processor.preprocess(source.mask, **size)
    hidden = picture * (mask < _MASKED_FROM)
    mask, _hidden_latents = changing.prepare_mask_latents(mask, hidden, 1, channels, 1, **size, **place)
    return Beginning(latents, kept=Kept(kept, noise, mask))


def _filling(pipeline: FluxPipeline, scheduler: Any, params: GenerationParams, seed: int, source: Source) -> Beginning:
    from diffusers import FluxFillPipeline

    parts = {name: part for name, part in pipeline.components.items() if name not in _NOT_OF_FILL}
    filling = FluxFillPipeline(**parts | {"scheduler": scheduler})
    size, place = _size(params), _place(pipeline, seed)
    channels = pipeline.vae.config.latent_channels
    picture = filling.image_processor.preprocess(source.image, **size).float()
    first = scheduler.timesteps[scheduler.begin_index :][:1]
    latents, _ids = filling.prepare_latents(picture, first, 1, channels, **size, **place)
    mask = filling.mask_processor.preprocess(source.mask, **size)
    hidden = (picture * (1 - mask)).to(place["device"], place["dtype"])
    mask, kept = filling.prepare_mask_latents(mask, hidden, 1, channels, 1, **size, **place)
    return Beginning(latents, filling=torch.cat([kept, mask], 2))


def encode_reference(pipeline: FluxPipeline, source: Source) -> torch.Tensor:
    """Packed latents of a picture that FLUX.1-Kontext looks at, without noise and by no seed: (1, tokens, channels)."""
    from diffusers import FluxKontextPipeline

    looking = FluxKontextPipeline(**pipeline.components)
    picture = looking.image_processor.preprocess(source.image, source.image.height, source.image.width)
    picture = picture.to(pipeline.transformer.device, pipeline.text_encoder_2.dtype)
    latents = looking._encode_vae_image(picture, None)
    packed: torch.Tensor = looking._pack_latents(latents, *latents.shape)
    return packed


def _size(params: GenerationParams) -> dict[str, int]:
    return {"height": params.height, "width": params.width}


def _place(pipeline: FluxPipeline, seed: int) -> dict[str, Any]:
    """Where and in which numbers latents are made, and by which; one after the other takes them from it."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return {"dtype": pipeline.text_encoder_2.dtype, "device": pipeline.transformer.device, "generator": generator}
