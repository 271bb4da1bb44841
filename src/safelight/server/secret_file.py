"""Keys that this server makes for itself and keeps in its data directory: what they signed outlives a restart."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

_KEY_BYTES = 32


def read_or_make_key(path: Path) -> bytes:
    """Thirty-two random bytes, the same each time. Raises ``OSError``."""
    if path.exists() and len(key := path.read_bytes()) == _KEY_BYTES:
        return key
    key = secrets.token_bytes(_KEY_BYTES)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as stream:
        stream.write(key)
    return key
