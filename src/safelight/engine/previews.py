"""Pictures of a job that is not finished: what the model believes the picture will be, at an eighth of its size.

The belief is the end of the straight line on which flow matching moves: x0 = x(sigma) - sigma * v, where the velocity
v is what the last step has moved along. A linear map from latent channels to colours, fitted to the model's own VAE
when it is loaded, makes it visible without the decoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from PIL import Image

from safelight.params import GenerationParams

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, FluxPipeline

OnPreview = Callable[[int, int, Image.Image], None]
"""Called on the GPU thread with (index of the picture in its job, steps done of it, small picture)."""

_CHART_CELLS = 8
_CELL_LATENTS = 4


def preview_steps(num_inference_steps: int, count: int) -> frozenset[int]:
    """After which steps, counted from 1, the pictures are shown: evenly, and never after the last."""
    steps = (round(place * num_inference_steps / (count + 1)) for place in range(1, count + 1))
    return frozenset(step for step in steps if 1 <= step < num_inference_steps)


class LatentColours:
    """RGB of latents as a linear map: (channels + 1, 3), the last row for a constant."""

    def __init__(self, weights: torch.Tensor) -> None:
        self._weights = weights

    @classmethod
    def fit(cls, vae: AutoencoderKL) -> LatentColours | None:
        """Least squares over a chart of random colours that the VAE encodes; ``None`` if its latents are not finite."""
        import torch

        generator = torch.Generator().manual_seed(0)
        scale = 2 ** (len(vae.config.block_out_channels) - 1)
        colours = torch.rand((1, 3, _CHART_CELLS, _CHART_CELLS), generator=generator)
        cells = colours.repeat_interleave(_CELL_LATENTS, 2).repeat_interleave(_CELL_LATENTS, 3)
        pixels = cells.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        with torch.inference_mode():
            encoded = vae.encode((pixels * 2 - 1).to(vae.device, vae.dtype)).latent_dist.mode()
        if not encoded.isfinite().all():
            return None
        latents = encoded.float().cpu()[0].flatten(1).T
        solved = torch.linalg.lstsq(_with_constant(latents), cells[0].flatten(1).T).solution
        return cls(solved)

    def picture(self, latents: torch.Tensor) -> Image.Image:
        """``latents`` as the VAE decodes them: (channels, height, width), in 8x smaller pixels."""
        channels, height, width = latents.shape
        rgb = _with_constant(latents.float().cpu().reshape(channels, -1).T) @ self._weights
        pixels = (rgb.clamp(0, 1) * 255).round().byte().reshape(height, width, 3)
        return Image.fromarray(pixels.numpy())


def _with_constant(rows: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)


class PreviewTap:
    """Looks at the latents of one picture after each step, and shows some. Runs on the GPU thread."""

    def __init__(self, colours: LatentColours, params: GenerationParams, index: int, on_preview: OnPreview) -> None:
        self._colours = colours
        self._params = params
        self._index = index
        self._on_preview = on_preview
        self._steps = preview_steps(params.steps_per_image, params.partial_images)
        self._before: torch.Tensor | None = None

    def begin(self, latents: torch.Tensor) -> None:
        """The noise that denoising begins with; without it there is nothing to show after the first step."""
        self._before = latents

    def after_step(self, pipeline: FluxPipeline, done: int, latents: torch.Tensor) -> None:
        """``latents`` as the pipeline packs them, after ``done`` steps."""
        before, self._before = self._before, latents
        if done not in self._steps or before is None:
            return
        place = pipeline.scheduler.step_index
        sigma, following = (float(pipeline.scheduler.sigmas[index]) for index in (place - 1, place))
        if math.isclose(sigma, following):
            return
        velocity = (latents.float() - before.float()) / (following - sigma)
        expected = _unpacked(pipeline, latents.float() - following * velocity, self._params)
        self._on_preview(self._index, done, self._colours.picture(expected))


def _unpacked(pipeline: FluxPipeline, latents: torch.Tensor, params: GenerationParams) -> Any:
    unpacked = pipeline._unpack_latents(latents, params.height, params.width, pipeline.vae_scale_factor)
    config = pipeline.vae.config
    return (unpacked / config.scaling_factor + config.shift_factor)[0]
