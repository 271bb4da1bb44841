"""Requests that this server makes because a client asked for them: to public addresses only, unless told otherwise.

A name is resolved once and the connection goes to the address that was checked, so that it cannot change in between.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from urllib.parse import SplitResult, urlsplit

import httpx2 as httpx

from safelight.errors import InvalidValue

_TIMEOUT_S = 10.0
_MAX_URL_CHARS = 2000
_PRIVATE_NAMES = ("localhost", ".localhost", ".local", ".internal")


def check_url(url: str, *, may_be_private: bool) -> None:
    """Raises ``InvalidValue`` for what is wrong with the address itself; names are resolved later."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host, parts = "", SplitResult("", "", "", "", "")
    if parts.scheme not in ("http", "https") or not host or len(url) > _MAX_URL_CHARS or not url.isprintable():
        raise InvalidValue("webhook is not an http or https address", param="webhook")
    if parts.username is not None or parts.password is not None:
        raise InvalidValue("webhook has a user or password in it", param="webhook")
    if not may_be_private and (host.endswith(_PRIVATE_NAMES) or not _may_be_public(host)):
        raise InvalidValue(
            "webhook is an address of a private network; the server's --private-webhooks true allows those",
            param="webhook",
        )


def _may_be_public(host: str) -> bool:
    try:
        return _is_public(host)
    except ValueError:
        return True  # a name


def _is_public(address: str) -> bool:
    """Raises ``ValueError`` for what is no IP address."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_global and not found.is_multicast


class PrivateAddress(Exception):
    """The name stands for an address of a private network."""


class Outbound:
    """Posts without following redirects, through no proxy of the environment, within ten seconds."""

    def __init__(self, *, may_be_private: bool) -> None:
        self._may_be_private = may_be_private
        self._client: httpx.AsyncClient | None = None
        self._opening = asyncio.Lock()

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        """The status of the answer, whose body is not read. Raises ``OSError``, ``PrivateAddress``, httpx errors."""
        client = await self._opened()
        target = httpx.URL(url)
        address = await self._resolve(target)
        headers = headers | {"host": target.netloc.decode()}
        extensions = {"sni_hostname": target.host}
        async with (
            asyncio.timeout(_TIMEOUT_S),
            client.stream(
                "POST", target.copy_with(host=address), content=body, headers=headers, extensions=extensions
            ) as answer,
        ):
            return answer.status_code

    async def _opened(self) -> httpx.AsyncClient:
        """Made when it is first needed: with it come the system's certificates, which would delay the start."""
        async with self._opening:
            if self._client is None:
                self._client = await asyncio.to_thread(
                    httpx.AsyncClient, timeout=_TIMEOUT_S, follow_redirects=False, trust_env=False
                )
            return self._client

    async def close(self) -> None:
        """Closes its connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _resolve(self, target: httpx.URL) -> str:
        port = target.port or (443 if target.scheme == "https" else 80)
        async with asyncio.timeout(_TIMEOUT_S):
            found = await asyncio.get_running_loop().getaddrinfo(target.host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        if not self._may_be_private and not all(map(_is_public, addresses)):
            raise PrivateAddress(f"{target.host} is an address of a private network")
        return addresses[0]
