"""Reads uploaded pictures with Pillow, which is imported only once somebody sends one."""

from __future__ import annotations

import io
import uuid

from PIL import Image, ImageOps

from safelight.errors import InvalidValue
from safelight.model_card import ModelCard, Task
from safelight.params import SourceImage

MAX_PIXELS = 50_000_000

_FORMATS = ("PNG", "JPEG", "WEBP")
_FASTEST = 1
_STRENGTH = 0.8
_SIDES_TOLERANCE = 0.02


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
    if Task.EDITING in card.tasks:
        return _reference(card, opened, size)
    size = size or _nearest_size(card, *opened.size)
    area = None if mask is None else _marked(_open(mask, "mask"), opened, is_inverted=mask_is_inverted)
    if area is None and Task.INPAINTING in card.tasks and _is_transparent(opened):
        area = _area_to_draw(opened)
    if strength is None:
        strength = _STRENGTH if area is None else 1.0
    name = uuid.uuid4().hex
    files = {f"{name}-image.png": _as_png(ImageOps.fit(_on_white(opened), size))}
    mask_file = None
    if area is not None:
        mask_file = f"{name}-mask.png"
        files[mask_file] = _as_png(ImageOps.fit(area, size, Image.Resampling.NEAREST))
    return SourceImage(f"{name}-image.png", strength, mask_file), files, size


def _reference(
    card: ModelCard, image: Image.Image, size: tuple[int, int] | None
) -> tuple[SourceImage, dict[str, bytes], tuple[int, int]]:
    """Whole, and a little stretched at most, as diffusers does it for FLUX.1-Kontext."""
    own_size = card.reference_size(*image.size)
    file = f"{uuid.uuid4().hex}-image.png"
    data = _as_png(_on_white(image).resize(own_size, Image.Resampling.LANCZOS))
    return SourceImage(file, reference_size=own_size), {file: data}, size or own_size


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


def _marked(mask: Image.Image, image: Image.Image, *, is_inverted: bool) -> Image.Image:
    """White where the picture is drawn anew. Raises ``InvalidValue`` for a mask that cannot lie on ``image``."""
    if abs(mask.width * image.height / (mask.height * image.width) - 1) > _SIDES_TOLERANCE:
        raise InvalidValue(
            f"mask is {mask.width}x{mask.height}, the image {image.width}x{image.height}: they must have one shape",
            param="mask",
        )
    area = _area_to_draw(mask)
    return ImageOps.invert(area) if is_inverted else area


def _is_transparent(image: Image.Image) -> bool:
    return bool(image.has_transparency_data and image.convert("RGBA").getchannel("A").histogram()[:128] != [0] * 128)


def _area_to_draw(mask: Image.Image) -> Image.Image:
    if _is_transparent(mask):
        return mask.convert("RGBA").getchannel("A").point(lambda alpha: 255 * (alpha < 128))
    return _in_bytes(mask).convert("L").point(lambda value: 255 * (value >= 128))


def _on_white(image: Image.Image) -> Image.Image:
    """RGB: what is transparent has no colour that anybody saw."""
    if not image.has_transparency_data:
        return _in_bytes(image).convert("RGB")
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")


def _in_bytes(image: Image.Image) -> Image.Image:
    """A picture of 16 bits with the upper eight of them: Pillow's own conversion cuts at 255."""
    return image.point(lambda value: value / 256).convert("L") if image.mode.startswith("I") else image


def _as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=_FASTEST)
    return buffer.getvalue()


def _nearest_size(card: ModelCard, width: int, height: int) -> tuple[int, int]:
    """The same shape, not larger than the model's usual area, in sides that it draws."""
    scale = min(1.0, (card.default_width * card.default_height / (width * height)) ** 0.5)
    return card.fitting(width * scale), card.fitting(height * scale)
