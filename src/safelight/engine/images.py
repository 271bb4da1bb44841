"""Turns pictures into bytes, on the worker's image thread: neither the GPU thread nor a loop waits for it."""

from __future__ import annotations

import io

from PIL import Image

from safelight.metadata import SOFTWARE, parameters_text, xmp_packet
from safelight.params import GenerationParams, ImageFormat, MetadataLevel
from safelight.protocol import EncodedImage

_DEFAULT_QUALITY = 90
_FASTEST_WEBP = 0
_EXIF_SOFTWARE, _EXIF_MODEL, _EXIF_IFD, _EXIF_USER_COMMENT = 0x0131, 0x0110, 0x8769, 0x9286


def encode_image(image: Image.Image, params: GenerationParams, seed: int, model: str) -> EncodedImage:
    """A finished picture. ``model`` is the name that its metadata gives; how much they tell is the request's choice.

    ``output_compression`` is the quality of JPEG and WebP, 0..100; PNG is lossless and ignores it.
    """
    text = None if params.metadata is MetadataLevel.NONE else parameters_text(params, seed, model)
    data = _encode(image, params.output_format, params.output_compression, text, model)
    return EncodedImage(data, params.output_format, seed, image.width, image.height)


def encode_preview(image: Image.Image, params: GenerationParams) -> bytes:
    """An unfinished picture, small as it comes, in the size and format of the finished one."""
    scaled = image.resize((params.width, params.height), Image.Resampling.BICUBIC)
    return _encode(scaled, params.output_format, params.output_compression, None, "")


def _encode(image: Image.Image, image_format: ImageFormat, quality: int | None, text: str | None, model: str) -> bytes:
    if image_format is ImageFormat.PNG:
        from safelight.engine.png import encode_png  # with it comes numpy, which would delay the start

        return encode_png(image.convert("RGB"), {"parameters": text} if text else {}, xmp_packet())
    buffer = io.BytesIO()
    quality = _DEFAULT_QUALITY if quality is None else quality
    exif, xmp = _exif(text, model), xmp_packet().encode()
    if image_format is ImageFormat.JPEG:
        image.save(buffer, "JPEG", quality=quality, exif=exif, xmp=xmp)
    else:
        image.save(buffer, "WEBP", quality=quality, method=_FASTEST_WEBP, exif=exif, xmp=xmp)
    return buffer.getvalue()


def _exif(text: str | None, model: str) -> Image.Exif:
    exif = Image.Exif()
    exif[_EXIF_SOFTWARE] = f"AI generated;flux;{SOFTWARE}"
    if text:
        exif[_EXIF_MODEL] = model
        exif.get_ifd(_EXIF_IFD)[_EXIF_USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
    return exif
