"""Reads uploaded pictures with Pillow, which is imported only once somebody sends one."""

from __future__ import annotations

import io
import uuid

from PIL import Image, ImageOps

from safelight.errors import InvalidValue
from safelight.model_card import ModelCard
from safelight.params import SourceImage

MAX_PIXELS = 50_000_000

_FORMATS = ("PNG", "JPEG", "WEBP")
_FASTEST = 1
_STRENGTH = 0.8


def read_pictures(
    card: ModelCard,
    image: bytes,
    mask: bytes | None,
    strength: float | None,
    size: tuple[int, int] | None,
    mask_is_inverted: bool,
) -> tuple[SourceImage, dict[str, bytes], tuple[int, int]]:
    """What ``Upload`` holds. ``image`` and ``mask`` begin as files of a kind that is read here; takes a while."""
    opened = _open(image, "image")
    size = size or _nearest_size(card, *opened.size)
    area = _area_to_draw(_open(mask, "mask")) if mask is not None else None
    if area is not None and mask_is_inverted:
        area = ImageOps.invert(area)
    if area is None and _is_transparent(opened):
        area = _area_to_draw(opened)
    if strength is None:
        strength = _STRENGTH if area is None else 1.0
    name = uuid.uuid4().hex
    files = {f"{name}-image.png": _as_png(ImageOps.fit(opened.convert("RGB"), size))}
    mask_file = None
    if area is not None:
        mask_file = f"{name}-mask.png"
        files[mask_file] = _as_png(ImageOps.fit(area, size, Image.Resampling.NEAREST))
    return SourceImage(f"{name}-image.png", strength, mask_file), files, size


def _open(data: bytes, param: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        image.load()
        return ImageOps.exif_transpose(image)
    except Image.DecompressionBombError:
        raise InvalidValue(f"{param} has more than {MAX_PIXELS // 1_000_000} megapixels", param=param) from None
    except (OSError, ValueError, SyntaxError):
        raise InvalidValue(f"{param} is damaged: it cannot be read to its end", param=param) from None


def _is_transparent(image: Image.Image) -> bool:
    return bool(image.has_transparency_data and image.convert("RGBA").getchannel("A").histogram()[:128] != [0] * 128)


def _area_to_draw(mask: Image.Image) -> Image.Image:
    """White where the picture is drawn anew."""
    if _is_transparent(mask):
        return mask.convert("RGBA").getchannel("A").point(lambda alpha: 255 * (alpha < 128))
    return mask.convert("L").point(lambda value: 255 * (value >= 128))


def _as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=_FASTEST)
    return buffer.getvalue()


def _nearest_size(card: ModelCard, width: int, height: int) -> tuple[int, int]:
    """The same shape, not larger than the model's usual area, in sides that it draws."""
    scale = min(1.0, (card.default_width * card.default_height / (width * height)) ** 0.5)
    return card.fitting(width * scale), card.fitting(height * scale)
