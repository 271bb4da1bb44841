"""The listening socket, bound before anything else happens: a port in use is known before a model loads."""

from __future__ import annotations

import errno
import socket

from safelight.errors import ConfigError, PortInUse

_BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises ``PortInUse``, or ``ConfigError`` for an address that is not this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):  # a label that is empty or too long has no IDNA form
        raise ConfigError(f"--host={host!r} is not an address of this machine", param="host") from None
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        listen(sock)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(f"port {port} on {host} is in use by another process: stop it or choose --port") from None
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}", param="host") from None
    sock.setblocking(False)
    return sock


def listen(sock: socket.socket) -> None:
    """How many connections may wait to be accepted; may be called again to say so again."""
    sock.listen(_BACKLOG)


def url_of(sock: socket.socket) -> str:
    """``http://host:port`` as a person would type it."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
