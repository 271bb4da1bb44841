"""JSON bodies read strictly: UTF-8 without a byte order mark, and no member twice.

Python's parser guesses the encoding and lets the last of two equal members win; what one client means and another
reads would then differ.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

_LARGE_BYTES = 256 * 1024
"""A body with pictures in it is not for the event loop."""


_EXACT = 2**53


class StrictJSONRoute(APIRoute):
    """A route whose requests are ``StrictJSONRequest``; for ``APIRouter(route_class=...)``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(StrictJSONRequest(request.scope, request.receive))

        return handle


class StrictJSONRequest(Request):
    """Raises ``ValueError`` for a body that is not strict JSON; FastAPI makes that a 400."""

    async def json(self) -> Any:
        body = await self.body()
        return _parse(body) if len(body) < _LARGE_BYTES else await asyncio.to_thread(_parse, body)


def _parse(body: bytes) -> Any:
    return json.loads(body.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_float=_number)


def _number(text: str) -> int | float:
    """``64.0`` is a whole number: some languages write all of theirs so, and JSON Schema says it is one."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < _EXACT else value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member appears twice")
    return members
