"""Encoded pictures: lossless, marked as made by a model, with as much of their making in them as was asked for."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from safelight.engine.images import encode_image, encode_preview
from safelight.engine.png import encode_png
from safelight.metadata import SOFTWARE, parameters_text, xmp_packet
from safelight.params import ImageFormat, MetadataLevel
from tests.unit.running_front import params

SOURCE_TYPE = b"trainedAlgorithmicMedia"


def _picture(width: int = 64, height: int = 48) -> Image.Image:
    source = np.random.default_rng(0)
    ramp = np.linspace(0, 200, width * height * 3).reshape(height, width, 3)
    return Image.fromarray((ramp + source.integers(0, 55, ramp.shape)).astype(np.uint8))


def _encoded(**members: Any) -> tuple[Image.Image, bytes]:
    data = encode_image(_picture(), params(prompt="ein größer Kreis 圆", **members), 7, "tests/model").data
    return Image.open(io.BytesIO(data)), data


@pytest.mark.parametrize("size", [(1, 1), (16, 1), (1, 16), (64, 48), (257, 31), (1024, 513), (263_000, 2)])
def test_png_keeps_every_pixel(size: tuple[int, int]) -> None:
    picture = _picture(*size)
    read = Image.open(io.BytesIO(encode_png(picture, {}, xmp_packet())))
    assert (read.mode, read.size) == ("RGB", size)
    assert read.tobytes() == picture.tobytes()


def test_png_is_about_as_small_as_pillows() -> None:
    picture = _picture(256, 256)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    assert len(encode_png(picture, {}, "")) < 1.1 * len(buffer.getvalue())


@pytest.mark.parametrize("text", ["plain", "Straße", "圆 🔴", "two\nlines"])
def test_png_text_is_read_back(text: str) -> None:
    read = Image.open(io.BytesIO(encode_png(_picture(), {"parameters": text}, "x")))
    read.load()
    assert read.info["parameters"] == text


@pytest.mark.parametrize("image_format", list(ImageFormat))
@pytest.mark.parametrize("level", list(MetadataLevel))
def test_every_file_says_that_a_model_made_it(image_format: ImageFormat, level: MetadataLevel) -> None:
    image, data = _encoded(output_format=image_format, metadata=level)
    assert SOURCE_TYPE in data
    assert image.info["xmp" if image_format is not ImageFormat.PNG else "XML:com.adobe.xmp"]


@pytest.mark.parametrize("image_format", list(ImageFormat))
@pytest.mark.parametrize(
    ("level", "has_prompt", "has_seed"),
    [(MetadataLevel.FULL, True, True), (MetadataLevel.MINIMAL, False, True), (MetadataLevel.NONE, False, False)],
)
def test_a_file_says_what_was_asked(
    image_format: ImageFormat, level: MetadataLevel, has_prompt: bool, has_seed: bool
) -> None:
    image, _ = _encoded(output_format=image_format, metadata=level)
    image.load()
    if image_format is ImageFormat.PNG:
        text = image.info.get("parameters", "")
    else:
        exif = image.getexif()
        assert SOFTWARE in exif[0x0131]
        comment = exif.get_ifd(0x8769).get(0x9286, b"UNICODE\0")
        assert comment.startswith(b"UNICODE\0")
        text = comment[8:].decode("utf-16-be")
    assert ("größer" in text, "Seed: 7" in text) == (has_prompt, has_seed)


def test_the_text_is_automatic1111s() -> None:
    asked = params(prompt="a cat", negative_prompt="blurry", true_cfg_scale=2.0, guidance_scale=3.5)
    assert parameters_text(asked, 42, "flux1-dev") == (
        "a cat\nNegative prompt: blurry\nSteps: 4, Sampler: Euler, Schedule type: Simple, CFG scale: 2, Seed: 42, "
        f"Size: 64x64, Model: flux1-dev, Version: {SOFTWARE}, Distilled CFG Scale: 3.5"
    )


@pytest.mark.parametrize("image_format", list(ImageFormat))
def test_a_preview_has_the_size_and_format_of_the_picture(image_format: ImageFormat) -> None:
    data = encode_preview(_picture(8, 8), params(output_format=image_format))
    image = Image.open(io.BytesIO(data))
    assert (image.size, image.format) == ((64, 64), image_format.name)
