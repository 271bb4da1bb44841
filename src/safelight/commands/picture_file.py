"""A finished picture as a file of the user's."""

from __future__ import annotations

from pathlib import Path

from safelight.errors import InvalidValue


def write_picture(path: Path, data: bytes) -> None:
    """Raises ``InvalidValue`` if that cannot be."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InvalidValue(f"--output {path} cannot be written: {error.strerror}", param="output") from None
