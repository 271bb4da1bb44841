"""Tends the store while the server runs: forgets what is too old or too much, and looks whether writing works."""

from __future__ import annotations

import asyncio
import contextlib
import time

from safelight.errors import StorageFull, StorageUnavailable
from safelight.server.store import JobStore

_PROBE_EVERY_S = 1.0
_PRUNE_EVERY_S = 60.0


async def tend(store: JobStore, ttl_s: float, limit_bytes: int) -> None:
    """Runs until it is cancelled. A write that failed is tried again each second, so that recovery needs no request."""
    pruned_s = float("-inf")
    while True:
        with contextlib.suppress(StorageFull, StorageUnavailable):
            if time.monotonic() - pruned_s > _PRUNE_EVERY_S:
                await store.prune(ttl_s, limit_bytes)  # also frees space on a disk that is full
                pruned_s = time.monotonic()
            elif store.trouble is not None:
                await store.probe()
        await asyncio.sleep(_PROBE_EVERY_S)
