"""The page at ``/``: its files are read once, and carry what their content is in their address.

The page is public, the data is not: its scripts ask for that with the visitor's key.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers

from safelight import __version__
from safelight.errors import NotFound
from safelight.server.front import Front

PREFIX = "/page/"

_FOLDER = Path(__file__).parents[1] / "page"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_INDEX = "index.html"
_PLACEHOLDER = b"/page/files/"
_DIGEST_CHARS = 16
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file as it is sent, plain and compressed."""

    data: bytes
    compressed: bytes
    media_type: str

    @classmethod
    def of(cls, name: str, data: bytes) -> PageFile:
        return cls(data, gzip.compress(data, mtime=0), _MEDIA_TYPES[Path(name).suffix])

    def response(self, request: Request, headers: dict[str, str]) -> Response:
        """Compressed for those who say that they can read that."""
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers = headers | {"content-encoding": "gzip"}
            return Response(self.compressed, headers=_HEADERS | headers, media_type=self.media_type)
        return Response(self.data, headers=_HEADERS | headers, media_type=self.media_type)


class Page:
    """All files of the page. ``digest`` changes with any of them, and is part of their addresses."""

    def __init__(self, folder: Path = _FOLDER) -> None:
        """Reads them: not on the event loop. Raises ``OSError``."""
        paths = sorted(path for path in folder.rglob("*") if path.suffix in _MEDIA_TYPES)
        contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        digest = hashlib.sha256()
        for name, data in contents.items():
            digest.update(f"{name} {len(data)}\n".encode() + data)
        self.digest = digest.hexdigest()[:_DIGEST_CHARS]
        index = contents.pop(_INDEX).replace(_PLACEHOLDER, f"{PREFIX}{self.digest}/".encode())
        self.index = PageFile.of(_INDEX, index)
        self.files = {name: PageFile.of(name, data) for name, data in contents.items()}


def routes(front: Front) -> APIRouter:
    """``/`` for browsers, and what the page there is made of; every other client of ``/`` learns who is here."""
    router = APIRouter(tags=["page"])
    page = Page()
    etag = f'"{page.digest}"'
    index_headers = {"cache-control": "no-cache", "etag": etag, "vary": "accept, accept-encoding"}
    file_headers = {"cache-control": "public, immutable, max-age=31536000", "vary": "accept-encoding"}

    @router.head("/", include_in_schema=False)
    @router.get("/", responses={200: {"content": {"application/json": {}, "text/html": {}}}})
    async def root(request: Request) -> Response:
        """Who is here; the page for those who accept HTML."""
        if not wants_page(request.headers):
            known = {"name": "safelight", "version": __version__, "status": front.state.value}
            return JSONResponse(known, headers={"vary": "accept"})
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=index_headers)
        return page.index.response(request, index_headers)

    @router.head(PREFIX + "{digest}/{name:path}", include_in_schema=False)
    @router.get(PREFIX + "{digest}/{name:path}", include_in_schema=False)
    async def page_file(digest: str, name: str, request: Request) -> Response:
        """One file of the page, for ever the same under its address."""
        found = page.files.get(name) if digest == page.digest else None
        if found is None:
            raise NotFound("the page has no such file, or not any more: load it again")
        return found.response(request, file_headers)

    return router


def wants_page(headers: Headers) -> bool:
    """Browsers say that they read HTML; nobody else who asks for ``/`` does."""
    return "text/html" in headers.get("accept", "")


def is_page(method: str, path: str, headers: Headers) -> bool:
    """Whether this is a request for the page itself, which anybody may see."""
    return method in ("GET", "HEAD") and (path.startswith(PREFIX) or (path == "/" and wants_page(headers)))
