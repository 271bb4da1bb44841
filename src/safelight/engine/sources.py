"""The picture that a job changes, and the mask of what may change, which has its size."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True, slots=True)
class Source:
    """``image`` is RGB; ``mask`` is of mode L, white where the picture is drawn anew."""

    image: Image.Image
    mask: Image.Image | None

    @classmethod
    def to_fill(cls, width: int, height: int) -> Source:
        """Nothing that stays: with it a model that fills draws from the prompt alone, as in its warm-up."""
        size = width, height
        return cls(Image.new("RGB", size, "gray"), Image.new("L", size, "white"))

    @classmethod
    def to_look_at(cls, width: int, height: int) -> Source:
        """Anything: what a model that edits looks at in its warm-up."""
        return cls(Image.new("RGB", (width, height), "gray"), None)

    def keep_outside_mask(self, drawn: Image.Image) -> Image.Image:
        """``drawn`` where the mask is white, the source elsewhere: to the pixel, as no VAE returns it."""
        return drawn if self.mask is None else Image.composite(drawn, self.image, self.mask)


def open_source(image: bytes | None, mask: bytes | None) -> Source | None:
    """Reads what the front has checked and brought into size."""
    if image is None:
        return None
    opened = Image.open(io.BytesIO(image), formats=("PNG",)).convert("RGB")
    return Source(opened, None if mask is None else Image.open(io.BytesIO(mask), formats=("PNG",)).convert("L"))
