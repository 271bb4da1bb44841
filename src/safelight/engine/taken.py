"""A picture on its way from the device to the host's memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from safelight.engine.failures import check_picture

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Taken:
    """To be read after the launches so far have been waited for."""

    _values: torch.Tensor
    _signs: torch.Tensor

    @classmethod
    def of(cls, pixels: torch.Tensor) -> Taken:
        """Of (height, width, 3) from 0 to 1; made bytes on the device, so that less travels."""
        import torch

        signs = torch.stack([pixels.isfinite().all().float(), (pixels.max() - pixels.min()).float()])
        values = (pixels.float() * 255).round().to(torch.uint8).contiguous()
        return cls(_to_host(values), _to_host(signs))

    def picture(self) -> Image.Image:
        """RGB, whatever it shows."""
        return Image.fromarray(self._values.numpy())

    def checked_picture(self, action: str | None) -> Image.Image:
        """Raises ``BadOutput`` if it is none. ``action`` is what a test asks to have happened to it."""
        is_finite, spread = self._signs.tolist()
        check_picture(is_finite=bool(is_finite) and action != "nan", spread=0.0 if action == "flat" else spread)
        return self.picture()


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
