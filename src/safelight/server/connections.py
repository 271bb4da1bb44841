"""``ConnectionGuard``: deadlines and bounds for HTTP connections, which uvicorn alone does not have.

Without it a client that sends half a request, or reads nothing, keeps its connection, its memory and the end of the
server for as long as it likes.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from dataclasses import dataclass

from safelight.server.guarded_protocol import GuardedProtocol
from safelight.server.metrics import Metrics

_SWEEP_EVERY_S = 0.25
_OTHER_FILES = 64
_LEAST_CONNECTIONS = 16
_DRAIN_STALL_S = 1.0
_REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections, and how long a client may take to send a head, to send a body, to read what is written."""

    max_connections: int
    head_timeout_s: float
    body_timeout_s: float
    write_timeout_s: float


class ConnectionGuard:
    """Knows every open connection and looks after all of them with one timer."""

    def __init__(self, limits: ConnectionLimits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._max_connections = max(min(limits.max_connections, raise_file_limit() - _OTHER_FILES), _LEAST_CONNECTIONS)
        self._connections: set[GuardedProtocol] = set()
        self.is_draining = False
        self.protocol = type("BoundProtocol", (GuardedProtocol,), {"guard": self})
        """For ``uvicorn.Config(http=...)``."""

    @property
    def count(self) -> int:
        """Open connections."""
        return len(self._connections)

    def admit(self, connection: GuardedProtocol) -> bool:
        """Whether there is room for a new connection; it was answered and closed if not."""
        if len(self._connections) >= self._max_connections:
            self._metrics.connections_closed.labels("limit").inc()
            connection.transport.write(_REFUSAL)
            connection.transport.close()
            return False
        self._connections.add(connection)
        self._metrics.connections.set(len(self._connections))
        return True

    def forget(self, connection: GuardedProtocol) -> None:
        """The connection is closed."""
        self._connections.discard(connection)
        self._metrics.connections.set(len(self._connections))

    async def sweep(self) -> None:
        """Runs until it is cancelled: closes what is past its deadline."""
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            for connection in list(self._connections):
                if reason := connection.overdue(_SWEEP_EVERY_S):
                    self._metrics.connections_closed.labels(reason).inc()

    def begin_drain(self) -> None:
        """Closes connections without a whole request now; every later answer closes its connection."""
        self.is_draining = True
        for connection in list(self._connections):
            connection.begin_drain()

    def limit_s(self, phase: str) -> float:
        """Seconds for ``head``, ``body`` or ``write``."""
        if phase == "write":
            return (
                min(self._limits.write_timeout_s, _DRAIN_STALL_S) if self.is_draining else self._limits.write_timeout_s
            )
        return self._limits.head_timeout_s if phase == "head" else self._limits.body_timeout_s


def raise_file_limit() -> int:
    """Raises this process' limit of open files as far as it may; the limit that now holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # macOS has an infinite hard limit and refuses it
        hard = soft
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard
