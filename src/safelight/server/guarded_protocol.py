"""uvicorn's HTTP/1.1 protocol with deadlines, and with half-closed clients kept.

Relies on these of uvicorn's internals: ``cycle`` with ``more_body``, ``response_started``, ``response_complete``,
``keep_alive``, ``default_headers`` and ``waiting_for_100_continue``; ``conn`` (h11); ``flow.read_paused``;
``timeout_keep_alive``; ``handle_events`` as the one place where a cycle begins. A test holds uvicorn to them.
"""

from __future__ import annotations

import asyncio
import math
import socket
from typing import Any, Protocol, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from safelight.server.taken_bytes import CountedTransport

_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSE_HEADER = (b"connection", b"close")

_FAIR_BYTES_PER_S = 8 * 1024

_TCP_CLOSE_WAIT = 8
_RESET_WITHIN_S = 0.02
_PROBE_AGAIN_S = (0.2, 1.0, 5.0, 30.0)


class Guard(Protocol):
    """Who knows all connections and their limits."""

    is_draining: bool

    def admit(self, connection: GuardedProtocol) -> bool:
        """Whether there is room for a new connection; it was answered and closed if not."""

    def forget(self, connection: GuardedProtocol) -> None:
        """The connection is closed."""

    def limit_s(self, phase: str) -> float:
        """Seconds for ``head``, ``body`` or ``write``."""


class GuardedProtocol(H11Protocol):
    """One connection. ``overdue`` is called by the guard at regular times; seconds are counted only while it waits."""

    guard: Guard

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._waited_s = 0.0
        self._stalled_s = 0.0
        self._taken_bytes = 0
        self._phase: str | None = "head"
        self._limit_s = self.guard.limit_s("head")

    # --- what asyncio calls -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._counted = CountedTransport(transport)
        self.transport = cast(asyncio.Transport, self._counted)
        if self.guard.admit(self):
            super().connection_made(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.guard.forget(self)
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A client that says no more may still listen: ``nc -N`` does, some proxies do. True keeps the connection."""
        if not self._has_whole_request or self.scope["http_version"] == "1.0" or not hasattr(socket, "TCP_INFO"):
            return None
        self._close_after_answer()
        self._probe(0)
        return True

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        phase = self._current_phase()
        if phase != self._phase or self.cycle is not before:
            self._enter(phase)
        if self.cycle is not before and self.guard.is_draining:
            self._close_after_answer()

    # --- deadlines --------------------------------------------------------------------------------------------------

    @property
    def _waits_for_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    @property
    def _has_whole_request(self) -> bool:
        return not self._waits_for_head and not self.cycle.more_body

    @property
    def _has_unanswered_body(self) -> bool:
        return self._phase == "body" and not self.cycle.response_started

    @property
    def _has_partial_head(self) -> bool:
        return bool(self.conn.trailing_data[0])

    def overdue(self, tick_s: float) -> str | None:
        """``tick_s`` more have passed: what the client took too long for, if it did; the connection is closed then."""
        if self._is_stalled(tick_s):
            self.transport.abort()
            return "write"
        if self._phase == "body" and (self.flow.read_paused or self.cycle.waiting_for_100_continue):
            return None  # while we do not read, it is not the client who is late
        self._waited_s += tick_s
        if self._waited_s <= self._limit_s or self.transport.is_closing():
            return None
        self._time_out()
        return self._phase if self._phase != "idle" else None

    def _current_phase(self) -> str | None:
        """``head`` or ``body`` while the client owes one, also a body that no one reads any more; ``idle``."""
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            return "body"
        if state is not h11.IDLE:
            return None
        return "head" if self.cycle is None or self._has_partial_head else "idle"

    def _enter(self, phase: str | None) -> None:
        """uvicorn has an idle timer too, but none once the rest of a body came after the answer."""
        self._phase = phase
        self._waited_s = 0.0
        if phase is None:
            self._limit_s = math.inf
        else:
            self._limit_s = self.timeout_keep_alive if phase == "idle" else self.guard.limit_s(phase)

    def _is_stalled(self, tick_s: float) -> bool:
        """A leaky bucket: every second of unread bytes counts, and those that were taken pay back at a fair rate."""
        if not self._counted.get_write_buffer_size():
            self._stalled_s = 0.0
            return False
        taken = self._counted.taken_bytes - self._taken_bytes
        self._taken_bytes += taken
        paid_s = self._stalled_s if self.guard.is_draining and taken else taken / _FAIR_BYTES_PER_S
        self._stalled_s = max(self._stalled_s - paid_s, 0.0) + tick_s
        return self._stalled_s > self.guard.limit_s("write")

    def _time_out(self) -> None:
        if self._phase == "body" and self.cycle.response_started and not self.cycle.response_complete:
            return self.transport.abort()  # close() would wait for an app that may write for ever
        if self._has_partial_head if self._phase == "head" else self._has_unanswered_body:
            self.transport.write(_TIMEOUT)
        self.transport.close()

    # --- drain ------------------------------------------------------------------------------------------------------

    def begin_drain(self) -> None:
        """Without a whole request: closes. Otherwise closes after the answer."""
        if not self._has_whole_request:
            self.transport.close()
        else:
            self._close_after_answer()

    def _close_after_answer(self) -> None:
        self.cycle.keep_alive = False
        self.cycle.default_headers = [*self.cycle.default_headers, _CLOSE_HEADER]

    # --- half-closed ------------------------------------------------------------------------------------------------

    def _probe(self, count: int) -> None:
        """Asks whether a client that sent its end is still there: one that is gone answers any bytes with a reset.

        An interim answer may be sent unasked, and every client skips this one; Go's no more than five of them.
        """
        if self.transport.is_closing() or self.cycle.response_complete:
            return
        if not self.cycle.response_started:
            self.transport.write(_CONTINUE)
        self.loop.call_later(_RESET_WITHIN_S, self._look, count)

    def _look(self, count: int) -> None:
        if self.transport.is_closing() or self.cycle.response_complete:
            return
        sock = self.transport.get_extra_info("socket")
        if sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_CLOSE_WAIT:
            return self.transport.abort()
        self.loop.call_later(_PROBE_AGAIN_S[min(count, len(_PROBE_AGAIN_S) - 1)], self._probe, count + 1)
