"""How much work each caller may ask for in a minute: a token bucket per API key, in megapixels x steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from safelight.errors import RateLimited

_WINDOW_S = 60.0
_MAX_BUCKETS = 10_000


@dataclass(slots=True)
class _Bucket:
    left: float
    filled_s: float


class RateLimit:
    """``work_per_minute`` may be asked for at once, and comes back evenly over a minute; 0 is no limit."""

    def __init__(self, work_per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = work_per_minute
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def take(self, owner: str, work: float) -> None:
        """Raises ``RateLimited`` with the time to wait. One job of more than a minute's work may have it on credit."""
        if not self._limit:
            return
        bucket = self._filled(owner)
        missing = min(work, self._limit) - bucket.left
        if missing > 0:
            retry_after_s = min(max(math.ceil(missing * _WINDOW_S / self._limit), 1), 60)
            raise RateLimited(
                f"this key may ask for {self._limit:g} megapixels x steps a minute, {max(bucket.left, 0):.1f} are left",
                retry_after_s=retry_after_s,
            )
        bucket.left -= work

    def give_back(self, owner: str, work: float) -> None:
        """The job was refused for another reason."""
        if self._limit:
            self._filled(owner).left += work

    def headers(self, owner: str) -> dict[str, str]:
        """IETF draft-ietf-httpapi-ratelimit-headers-10: what is left, and in how many seconds all is back."""
        if not self._limit:
            return {}
        left = max(self._filled(owner).left, 0.0)
        reset_s = math.ceil((self._limit - left) * _WINDOW_S / self._limit)
        return {
            "ratelimit-policy": f'"work";q={self._limit:g};w={_WINDOW_S:g}',
            "ratelimit": f'"work";r={int(left)};t={reset_s}',
        }

    def _filled(self, owner: str) -> _Bucket:
        now_s = self._clock()
        if owner not in self._buckets and len(self._buckets) >= _MAX_BUCKETS:
            self._buckets = {name: kept for name, kept in self._buckets.items() if now_s - kept.filled_s < _WINDOW_S}
        bucket = self._buckets.setdefault(owner, _Bucket(self._limit, now_s))
        bucket.left = min(self._limit, bucket.left + (now_s - bucket.filled_s) * self._limit / _WINDOW_S)
        bucket.filled_s = now_s
        return bucket
