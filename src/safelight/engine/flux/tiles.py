"""The VAE in tiles: a picture's memory then does not grow with its size."""

from __future__ import annotations

from typing import Any

TILE_PIXELS = 512
"""Side of a tile. diffusers' own default is the size that the VAE was trained for, 1024: a picture in one piece."""


def tile_vae(vae: Any) -> None:
    """From now on what is larger than a tile is encoded and decoded in overlapping ones, blended into each other."""
    vae.enable_tiling()
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    vae.tile_sample_min_size = TILE_PIXELS
    vae.tile_latent_min_size = TILE_PIXELS // scale
