"""HTTP for loopback: without the 40 ms that httpx takes to read the machine's certificates for each client."""

from __future__ import annotations

import ssl

import httpx2 as httpx

NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def open_client(url: str, timeout_s: float = 120) -> httpx.Client:
    """As ``httpx.get`` and ``post``: a connection per request, from as many threads as like."""
    unkept = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.Client(base_url=url, timeout=timeout_s, limits=unkept, verify=NO_CERTIFICATES, trust_env=False)


def open_async_client(url: str, timeout_s: float) -> httpx.AsyncClient:
    """One that keeps its connections."""
    return httpx.AsyncClient(base_url=url, timeout=timeout_s, verify=NO_CERTIFICATES, trust_env=False)
