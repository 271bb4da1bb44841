"""Whether two machines have the same model: a hash of its small files, and of samples of its large ones.

It takes milliseconds for any size. That every byte is right is what a pulled model's manifest is for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from safelight.checkpoint.component import Checkpoint, Component

_SAMPLE_BYTES = 64 * 1024
_SMALL = (".json", ".model", ".txt")


def fingerprint(checkpoint: Checkpoint) -> str:
    """In hexadecimal; where the files lie does not matter. Raises ``OSError``."""
    digest = hashlib.sha256()
    for component in checkpoint.components:
        digest.update(component.name.encode() + b"\0")
        for path in _files(component):
            for piece in _samples(path):
                digest.update(piece)
    return digest.hexdigest()


def _files(component: Component) -> Iterator[Path]:
    """In an order that is the same everywhere."""
    yield from component.files
    if not component.is_single_file and component.folder != Path():
        yield from sorted(path for path in component.folder.iterdir() if path.suffix in _SMALL and path.is_file())


def _samples(path: Path) -> Iterator[bytes]:
    """Its size, and its beginning, middle and end: all of it, if it is small."""
    with path.open("rb") as file:
        size_bytes = file.seek(0, 2)
        yield size_bytes.to_bytes(8, "big")
        for start in sorted({0, max(size_bytes // 2, 0), max(size_bytes - _SAMPLE_BYTES, 0)}):
            file.seek(start)
            yield file.read(_SAMPLE_BYTES)
