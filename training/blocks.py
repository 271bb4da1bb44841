"""The latents' meaning: of every 16x16 square of pixels, eight cosine coefficients per colour.

A VAE that had to find its own code would need hours on a CPU. This code is fixed, so a picture's latents cost one
convolution, the decoder learns to draw from them, and the encoder learns to find them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 16
_FREQUENCIES = ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1))
_GAINS = (1.6, 16.0, 16.0, 26.0, 26.0, 26.0, 32.0, 32.0)
"""Chosen so that every channel has a spread near one over the pictures of this project."""

COEFFICIENTS = len(_FREQUENCIES)
CHANNELS = 3 * COEFFICIENTS


def block_latents(pictures: Tensor) -> Tensor:
    """(batch, 3, height, width) in -1..1 to (batch, 24, height/16, width/16); channel 8 c is colour c's mean x 1.6."""
    batch, colours, height, width = pictures.shape
    planes = pictures.reshape(batch * colours, 1, height, width)
    found = F.conv2d(planes, _basis().to(pictures)[:, None], stride=SIDE)
    return found.reshape(batch, CHANNELS, height // SIDE, width // SIDE)


def _basis() -> Tensor:
    """The two-dimensional cosines, (8, 16, 16)."""
    points = torch.arange(SIDE) + 0.5
    waves = [torch.cos(math.pi * points * k / SIDE) * (1.0 if k == 0 else math.sqrt(2.0)) / SIDE for k in range(3)]
    return torch.stack(
        [gain * torch.outer(waves[a], waves[b]) for gain, (a, b) in zip(_GAINS, _FREQUENCIES, strict=True)]
    )
