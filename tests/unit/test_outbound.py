"""Where this server does not go for a client's sake."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from safelight.errors import InvalidValue
from safelight.server.outbound import Outbound, PrivateAddress, check_url

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org",
        "ftp://example.org/",
        "file:///etc/passwd",
        "http://",
        "http://user:secret@example.org/",
        "http://[::1",
        "http://example.org:99999/",
        "http://example.org/\n",
        "http://" + "a" * 3000,
    ],
)
def test_what_is_no_address_is_refused_whatever_is_allowed(url: str) -> None:
    with pytest.raises(InvalidValue, match="webhook"):
        check_url(url, may_be_private=True)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "a.localhost",
        "printer.local",
        "metadata.google.internal",
        "10.1.2.3",
        "192.168.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "[::1]",
        "[fe80::1]",
        "[::ffff:127.0.0.1]",
    ],
)
def test_private_addresses_are_refused_unless_allowed(host: str) -> None:
    with pytest.raises(InvalidValue, match="private network"):
        check_url(f"http://{host}:8080/hook", may_be_private=False)
    check_url(f"http://{host}:8080/hook", may_be_private=True)


@pytest.mark.parametrize(
    "url", ["https://example.org/hook?a=b", "http://93.184.216.34:8080", "https://[2606:4700::1]/"]
)
def test_public_addresses_are_accepted(url: str) -> None:
    check_url(url, may_be_private=False)


async def test_a_name_that_stands_for_a_private_address_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one of which only one of several addresses is private: which one a connection takes is chance."""
    addresses = ["93.184.216.34", "127.0.0.1"]

    def resolve(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    outbound = Outbound(may_be_private=False)
    with pytest.raises(PrivateAddress):
        await outbound.post("http://rebinding.example.org/", b"", {})
    await outbound.close()
