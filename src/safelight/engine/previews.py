"""Pictures of a job that is not finished: what the model believes the picture will be, at an eighth of its size.

The belief is the end of the straight line on which flow matching moves: x0 = x(sigma) - sigma * v. A linear map from
latent channels to colours, fitted to the model's own VAE when it is loaded, makes it visible without the decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

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
        return cls(solved.to(vae.device))

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """(height, width, 3) from 0 to 1, of ``latents`` as the VAE decodes them: (channels, height, width)."""
        rgb: torch.Tensor = _with_constant(latents.float().flatten(1).T) @ self._weights
        return rgb.clamp(0, 1).view(*latents.shape[1:], 3)


def _with_constant(rows: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
