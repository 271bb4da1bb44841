"""A PNG writer for photographs: the Up filter and Intel's deflate, a twelfth of the time of Pillow's level 1.

``benchmarks/bench_encoding.py`` measures it. Pillow spends that time in zlib. Format: https://www.w3.org/TR/png-3/
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
from isal import isal_zlib
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2
_LEVEL = 1
_TRUECOLOUR, _BITS = 2, 8
_XMP = "XML:com.adobe.xmp"


def encode_png(image: Image.Image, text: Mapping[str, str], xmp: str) -> bytes:
    """``image`` is RGB; ``text`` maps keywords to texts of any language."""
    pixels = np.asarray(image)
    height, width, _ = pixels.shape
    rows = np.empty((height, 1 + width * 3), np.uint8)
    flat = pixels.reshape(height, width * 3)
    rows[:, 0] = _UP
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    chunks = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, _BITS, _TRUECOLOUR, 0, 0, 0))]
    chunks += [_text_chunk(keyword, value) for keyword, value in text.items()]
    chunks.append(_international_chunk(_XMP, xmp))
    chunks.append(_chunk(b"IDAT", isal_zlib.compress(rows.data, _LEVEL)))
    chunks.append(_chunk(b"IEND", b""))
    return _SIGNATURE + b"".join(chunks)


def _text_chunk(keyword: str, value: str) -> bytes:
    try:
        return _chunk(b"tEXt", keyword.encode("latin-1") + b"\0" + value.encode("latin-1"))
    except UnicodeEncodeError:
        return _international_chunk(keyword, value)


def _international_chunk(keyword: str, value: str) -> bytes:
    """Uncompressed, of no stated language."""
    return _chunk(b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + value.encode())


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", isal_zlib.crc32(data, isal_zlib.crc32(kind)))
