"""A PNG writer for photographs: the Up filter and Intel's deflate, strips of a picture side by side.

It takes less than a twelfth of the time of Pillow's level 1, which spends it in zlib; ``benchmarks/bench_encoding.py``
measures it. Format: https://www.w3.org/TR/png-3/
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from isal import isal_zlib
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2
_LEVEL = 1
_TRUECOLOUR, _BITS = 2, 8
_XMP = "XML:com.adobe.xmp"
_STRIP_BYTES = 768 * 1024
"""Not by the number of cores: the same picture is the same file everywhere."""
_RAW = -15
_ZLIB_HEADER = b"\x78\x01"

_strip_threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="png")  # isal lets go of the GIL


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
    chunks.append(_chunk(b"IDAT", *_deflated(rows)))
    chunks.append(_chunk(b"IEND"))
    return b"".join([_SIGNATURE, *itertools.chain.from_iterable(chunks)])


def _deflated(rows: np.ndarray[Any, np.dtype[np.uint8]]) -> Iterable[bytes]:
    """One zlib stream (RFC 1950) in parts: a strip that is flushed to a byte can be followed by any other."""
    height = max(_STRIP_BYTES // rows.shape[1], 1)
    strips = [rows[top : top + height].data for top in range(0, len(rows), height)]
    modes = [isal_zlib.Z_SYNC_FLUSH] * (len(strips) - 1) + [isal_zlib.Z_FINISH]
    return [
        _ZLIB_HEADER,
        *_strip_threads.map(_deflated_strip, strips, modes),
        struct.pack(">I", isal_zlib.adler32(rows.data)),
    ]


def _deflated_strip(strip: memoryview, mode: int) -> bytes:
    compressor = isal_zlib.compressobj(_LEVEL, isal_zlib.DEFLATED, _RAW)
    return compressor.compress(strip) + compressor.flush(mode)


def _text_chunk(keyword: str, value: str) -> list[bytes]:
    try:
        return _chunk(b"tEXt", keyword.encode("latin-1") + b"\0" + value.encode("latin-1"))
    except UnicodeEncodeError:
        return _international_chunk(keyword, value)


def _international_chunk(keyword: str, value: str) -> list[bytes]:
    """Uncompressed, of no stated language."""
    return _chunk(b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + value.encode())


def _chunk(kind: bytes, *parts: bytes) -> list[bytes]:
    checksum = isal_zlib.crc32(kind)
    for part in parts:
        checksum = isal_zlib.crc32(part, checksum)
    return [struct.pack(">I", sum(map(len, parts))), kind, *parts, struct.pack(">I", checksum)]
