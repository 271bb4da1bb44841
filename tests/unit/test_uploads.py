"""Uploaded pictures: what is refused before it is decoded, and what becomes of the rest."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import pytest
from PIL import Image

from safelight.errors import InvalidValue, UnsupportedValue
from safelight.model_card import ModelCard
from safelight.server.uploads import Upload, decode_base64, is_picture, read_upload

pytestmark = pytest.mark.anyio

CARD = ModelCard(id="tests/model", default_width=64, default_height=64, min_size=32, max_size=256)


def picture(image_format: str = "PNG", size: tuple[int, int] = (64, 64), mode: str = "RGB", **options: Any) -> bytes:
    colours: dict[str, Any] = {"RGB": (200, 10, 10), "RGBA": (200, 10, 10, 0), "L": 255, "CMYK": (0, 0, 0, 0), "P": 1}
    buffer = io.BytesIO()
    Image.new(mode, size, colours[mode]).save(buffer, image_format, **options)
    return buffer.getvalue()


def _opened(upload: Upload) -> tuple[Image.Image, Image.Image | None]:
    image = Image.open(io.BytesIO(upload.files[upload.source.file]))
    mask = upload.source.mask_file
    return image, Image.open(io.BytesIO(upload.files[mask])) if mask else None


@pytest.mark.parametrize(
    ("image_format", "mode"),
    [("PNG", "RGB"), ("PNG", "L"), ("PNG", "P"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGB")],
)
async def test_every_kind_becomes_rgb_of_the_size_asked(image_format: str, mode: str) -> None:
    upload = await read_upload(CARD, picture(image_format, (100, 50), mode), None, None, (96, 48))
    image, mask = _opened(upload)
    assert (image.mode, image.size, mask, upload.source.strength) == ("RGB", (96, 48), None, 0.8)


@pytest.mark.parametrize(
    ("size", "expected"), [((64, 64), (64, 64)), ((640, 320), (96, 48)), ((44, 44), (48, 48)), ((5000, 10), (256, 32))]
)
async def test_without_a_size_it_is_the_nearest_that_the_model_draws(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    upload = await read_upload(CARD, picture(size=size), None, None, None)
    assert upload.size == expected == _opened(upload)[0].size


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0 and no more",
        picture()[:60],
        picture("JPEG")[:200],
        b"GIF89a" + bytes(100),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
)
async def test_what_is_no_picture_is_named(data: bytes) -> None:
    with pytest.raises(InvalidValue, match="mask") as refused:
        await read_upload(CARD, picture(), data, None, None)
    assert refused.value.param == "mask"


async def test_a_bomb_is_refused_by_its_header() -> None:
    """S12: sixty thousand by sixty thousand pixels in a hundred bytes."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")):
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    with pytest.raises(InvalidValue, match="megapixels"):
        await read_upload(CARD, data, None, None, None)


async def test_a_transparent_mask_and_a_white_one_mean_the_same() -> None:
    half = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    half.paste((0, 0, 0, 0), (0, 0, 32, 64))
    white = Image.new("L", (64, 64), 0)
    white.paste(255, (0, 0, 32, 64))
    masks = []
    for image in (half, white):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        upload = await read_upload(CARD, picture(), buffer.getvalue(), None, None)
        assert upload.source.strength == 1.0
        mask = _opened(upload)[1]
        assert mask is not None
        masks.append(mask.tobytes())
    assert masks[0] == masks[1] == white.tobytes()


async def test_sixteen_bits_are_not_all_white() -> None:
    grey = Image.new("I;16", (64, 64), 60 * 256)
    buffer = io.BytesIO()
    grey.save(buffer, "PNG")
    image, mask = _opened(await read_upload(CARD, buffer.getvalue(), buffer.getvalue(), None, None))
    assert mask is not None
    assert (image.getpixel((0, 0)), mask.getextrema()) == ((60, 60, 60), (0, 0))


async def test_what_is_transparent_begins_white() -> None:
    """Not in a colour that the file has, but nobody saw."""
    image, _ = _opened(await read_upload(CARD, picture(mode="RGBA"), None, None, None))
    assert image.getpixel((0, 0)) == (255, 255, 255)


async def test_an_inverted_mask() -> None:
    upload = await read_upload(CARD, picture(), picture(mode="L"), None, None, mask_is_inverted=True)
    mask = _opened(upload)[1]
    assert mask is not None and mask.getextrema() == (0, 0)


async def test_transparency_of_the_image_is_a_mask() -> None:
    upload = await read_upload(CARD, picture(mode="RGBA"), None, None, None)
    mask = _opened(upload)[1]
    assert mask is not None and mask.getextrema() == (255, 255)
    assert upload.source.strength == 1.0


async def test_the_camera_was_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upload = await read_upload(CARD, picture("JPEG", (64, 32), exif=exif), None, None, None)
    assert upload.size == (32, 64)


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", "data:image/svg+xml;base64,"])
def test_base64_with_and_without_a_prefix(prefix: str) -> None:
    assert decode_base64(prefix + base64.b64encode(b"abc").decode(), "image") == b"abc"


@pytest.mark.parametrize("text", ["no base64!", "data:image/png;base64,%%%", "data:,abc"])
def test_what_is_not_base64_is_named(text: str) -> None:
    with pytest.raises(InvalidValue, match="mask is not base64"):
        decode_base64(text, "mask")


@pytest.mark.parametrize("text", ["http://example.org/a.png", "https://example.org", "file:///etc/passwd"])
def test_addresses_are_not_fetched(text: str) -> None:
    with pytest.raises(UnsupportedValue, match="data: URI"):
        decode_base64(text, "image")


def test_kinds_are_told_by_their_first_bytes() -> None:
    assert all(is_picture(picture(kind)) for kind in ("PNG", "JPEG", "WEBP"))
    assert not is_picture(b'{"inputs": "a cat"}')
