"""The server's state as server-sent events: made once, however many follow it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from safelight.server.changes import Changes
from safelight.server.event_stream import PING, event

_MIN_INTERVAL_S = 0.1
_PING_S = 15.0


class StatusFeed:
    """An event is sent to all whom it reaches within a tenth of a second; changes that come faster are one event."""

    def __init__(self, changes: Changes, status: Callable[[], dict[str, Any]], is_stopped: Callable[[], bool]) -> None:
        self._changes = changes
        self._status = status
        self._is_stopped = is_stopped
        self._made_s = -math.inf
        self._seen = -1
        self._event = b""

    async def events(self) -> AsyncIterator[bytes]:
        """One at once, then one after each change; a comment when all is quiet. Ends when the server has stopped."""
        while True:
            if self._due_in_s <= 0:
                self._make()
            seen = self._seen
            yield self._event
            if self._is_stopped() and seen == self._changes.count:
                return
            while self._changes.count == seen and not await self._changes.wait(_PING_S):
                yield PING
            while self._seen == seen and self._due_in_s > 0:  # noqa: ASYNC110 (time alone makes it due)
                await asyncio.sleep(self._due_in_s)

    @property
    def _due_in_s(self) -> float:
        return max(self._made_s + _MIN_INTERVAL_S - time.monotonic(), 0.0)

    def _make(self) -> None:
        self._made_s = time.monotonic()
        self._seen = self._changes.count
        self._event = event("status", msgspec.json.encode(self._status()).decode())
