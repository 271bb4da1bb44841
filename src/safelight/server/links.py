"""Addresses of pictures that work without a key, for a while: signed, for clients fetch them without their headers."""

from __future__ import annotations

import hashlib
import hmac
import time
from pathlib import Path

from safelight.errors import NotFound
from safelight.server.secret_file import read_or_make_key

PREFIX = "/files/"
_KEY_FILE = "link-key"


class PictureLinks:
    """Signs with a key of the data directory, so that links outlive a restart. Raises ``OSError``."""

    def __init__(self, folder: Path, ttl_s: float) -> None:
        self._key = read_or_make_key(folder / _KEY_FILE)
        self._ttl_s = ttl_s

    def path(self, job_id: str, index: int) -> str:
        """Path and query of one picture."""
        expires_s = int(time.time() + self._ttl_s)
        return f"{PREFIX}{job_id}/{index}?expires={expires_s}&signature={self._sign(job_id, index, expires_s)}"

    def check(self, job_id: str, index: int, expires_s: int, signature: str) -> None:
        """Raises ``NotFound``: what is wrong with a link is nobody's business."""
        expected = self._sign(job_id, index, expires_s)
        if not hmac.compare_digest(expected.encode(), signature.encode()) or expires_s < time.time():
            raise NotFound("this link is not valid, or not any more")

    def _sign(self, job_id: str, index: int, expires_s: int) -> str:
        return hmac.new(self._key, f"{job_id}/{index}/{expires_s}".encode(), hashlib.sha256).hexdigest()
