"""Who may ask at all: API keys on every route that is not public, and nothing that a foreign web page has browsers do.

Decided on the path that the router will see, and denied unless allowed.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from safelight.config import Config
from safelight.errors import HostNotAllowed, OriginNotAllowed, PermissionDenied, SafelightError, Unauthorized
from safelight.server.keys import ApiKeys, Caller
from safelight.server.links import PREFIX as SIGNED_PREFIX
from safelight.server.page import is_page
from safelight.server.problems import problem

PUBLIC_PATHS = frozenset(
    {"/livez", "/health", "/ping", "/health-check", "/v2/health/live", "/readyz", "/v2/health/ready", "/startupz"}
)
"""Health only; with keys configured, what they tell without one is a single word. Signed links carry their own key, and
the page is for everybody."""

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_ADMIN_SUFFIXES = ("/load", "/unload", "/pin", "/unpin", "/restart")
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Admission:
    """ASGI middleware. Sets ``scope["safelight.caller"]`` for what it lets through."""

    def __init__(self, app: ASGIApp, config: Config) -> None:
        self._app = app
        self._keys = ApiKeys(config.api_keys, config.admin_keys)
        self._hosts = _allowed_hosts(config)
        self._origins = frozenset(config.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            scope["safelight.caller"] = self._admit(scope)
        except SafelightError as error:
            response = problem(Request(scope), error)
            if isinstance(error, Unauthorized):
                response.headers["www-authenticate"] = "Bearer"
            return await response(scope, receive, send)
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> Caller | None:
        headers, path, method = Headers(scope=scope), scope["path"], scope["method"]
        self._check_host(headers)
        if method not in _SAFE_METHODS:
            self._check_origin(headers)
        caller = self._keys.caller(headers)
        is_public = path in PUBLIC_PATHS or path.startswith(SIGNED_PREFIX) or is_page(method, path, headers)
        if caller is None and not is_public:
            raise Unauthorized("this server needs an API key: send one as Authorization: Bearer KEY")
        if method == "POST" and path.endswith(_ADMIN_SUFFIXES) and not (caller and caller.is_admin):
            raise PermissionDenied("this needs an admin key")
        return caller

    def _check_host(self, headers: Headers) -> None:
        """A page whose name was made to point at this machine has its own name in Host."""
        hosts = headers.getlist("host")
        if self._hosts is not None and (len(hosts) != 1 or _host_name(hosts[0]) not in self._hosts):
            raise HostNotAllowed("this server does not answer for that host: --allowed-hosts names those it does")

    def _check_origin(self, headers: Headers) -> None:
        """Browsers send along which page asks; a page of another server may not."""
        origin = headers.get("origin")
        if origin in self._origins:
            return
        is_foreign = origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
        if is_foreign or headers.get("sec-fetch-site") == "cross-site":
            raise OriginNotAllowed("pages of other origins may not ask here: --allowed-origins names those that may")


def _allowed_hosts(config: Config) -> frozenset[str] | None:
    """``None``: any. Behind a foreign name without keys only rebinding would come; with keys that is no danger."""
    if config.allowed_hosts:
        return frozenset(host.lower() for host in config.allowed_hosts) | _LOOPBACK_NAMES
    return _LOOPBACK_NAMES | {config.host.lower()} if is_loopback(config.host) else None


def _host_name(host: str) -> str:
    """Without the port; an IPv6 address keeps its brackets."""
    name = host.strip().lower()
    return name[: name.index("]") + 1] if name.startswith("[") and "]" in name else name.partition(":")[0]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
