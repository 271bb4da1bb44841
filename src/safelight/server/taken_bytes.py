"""How many of the bytes that were written to a client its machine has taken; asyncio does not count them."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import sys
import termios
from typing import Any

_UNSENT_BYTES = 64 * 1024


class CountedTransport:
    """An asyncio transport that counts, and of which the kernel buffers little.

    Left alone, Linux buffers up to 4 MiB for a client that does not read, and asks for more only once a third of that
    is gone: for a slow client that is a minute in which nothing seems to happen.
    """

    __slots__ = ("_socket", "_transport", "_written_bytes", "get_write_buffer_size")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._written_bytes = 0
        self.get_write_buffer_size = transport.get_write_buffer_size
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._written_bytes += len(data)
        self._transport.write(data)

    @property
    def taken_bytes(self) -> int:
        """Written less what asyncio and the kernel still hold. Only while something is left to write."""
        return self._written_bytes - self.get_write_buffer_size() - self._kernel_bytes()

    def _kernel_bytes(self) -> int:
        if sys.platform != "linux":
            return 0
        return int.from_bytes(fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
