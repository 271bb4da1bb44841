"""Pictures that clients send to be changed: checked before they are decoded, then brought into the form that workers
read, so that a bad file is the sender's error and nobody else's.
"""

from __future__ import annotations

import asyncio
import binascii
import functools
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import pybase64

from safelight.errors import InvalidValue, UnsupportedValue
from safelight.model_card import ModelCard
from safelight.params import SourceImage

P = ParamSpec("P")
T = TypeVar("T")

MAX_UPLOAD_BYTES = 32 * 1024 * 1024

_DATA_URI = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,")

_threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="uploads")
"""Two at once, for a decoded picture is many times its file; and those who fetch pictures do not wait for them."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A source as it is stored: PNG files by name, and what the job's params say of them."""

    source: SourceImage
    files: dict[str, bytes]
    size: tuple[int, int]


async def read_upload(
    card: ModelCard,
    image: bytes,
    mask: bytes | None,
    strength: float | None,
    size: tuple[int, int] | None,
    *,
    mask_is_inverted: bool = False,
    strength_name: str = "strength",
) -> Upload:
    """``size`` is that of the answer; without one it is the image's own, as near as the model can draw it.

    What may change is where the mask is transparent or, if it is opaque, white; without a mask where the image itself
    is transparent. ``strength_name`` is what the API calls it. Raises ``InvalidValue`` or ``UnsupportedValue`` that
    names the part, for what the model does not take before anything is read.
    """
    check_upload(card, mask, strength, strength_name)
    for param, data in (("image", image), ("mask", mask)):
        if data is not None and not is_picture(data):
            raise InvalidValue(f"{param} is not a PNG, JPEG or WebP picture", param=param)
    return await _on_thread(_read, card, image, mask, strength, size, mask_is_inverted)


def check_upload(card: ModelCard, mask: object, strength: float | None, strength_name: str) -> None:
    """Raises ``UnsupportedValue`` for what this model does with no picture whatsoever."""
    card.check_picture(has_mask=mask is not None, strength_name=None if strength is None else strength_name)


async def _on_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await asyncio.get_running_loop().run_in_executor(_threads, functools.partial(function, *args, **kwargs))


def _read(
    card: ModelCard,
    image: bytes,
    mask: bytes | None,
    strength: float | None,
    size: tuple[int, int] | None,
    mask_is_inverted: bool,
) -> Upload:
    from safelight.server.uploaded_pictures import read_pictures

    return Upload(*read_pictures(card, image, mask, strength, size, mask_is_inverted))


async def read_base64_upload(
    card: ModelCard,
    image: str,
    mask: str | None,
    strength: float | None,
    size: tuple[int, int] | None,
    *,
    mask_is_inverted: bool = False,
    strength_name: str = "strength",
) -> Upload:
    """As ``read_upload``, for pictures inside JSON."""
    check_upload(card, mask, strength, strength_name)
    data = await _on_thread(decode_base64, image, "image")
    mask_data = None if mask is None else await _on_thread(decode_base64, mask, "mask")
    return await read_upload(
        card, data, mask_data, strength, size, mask_is_inverted=mask_is_inverted, strength_name=strength_name
    )


def decode_base64(text: str, param: str) -> bytes:
    """Base64, alone or as a ``data:`` address. Raises ``InvalidValue``; other addresses are not fetched."""
    if re.match(r"[a-z]+://", text):
        raise UnsupportedValue(f"{param} is an address: send the picture itself, as a data: URI", param=param)
    found = _DATA_URI.match(text)
    try:
        return pybase64.b64decode(text[found.end() if found else 0 :], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidValue(f"{param} is not base64", param=param) from None


def is_picture(data: bytes) -> bool:
    """Whether these bytes begin as a file of a kind that is read here."""
    return data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
