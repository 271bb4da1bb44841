"""Where a worker stands, in one word."""

from __future__ import annotations

from enum import StrEnum


class WorkerState(StrEnum):
    """Where a worker stands. A process goes from ``starting`` to ``busy``, then is ``draining`` or has died."""

    STARTING = "starting"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    RESTARTING = "restarting"
    FAILED = "failed"
    UNLOADED = "unloaded"


SERVING = frozenset({WorkerState.READY, WorkerState.BUSY})
ALIVE = SERVING | {WorkerState.DRAINING}
