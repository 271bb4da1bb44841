"""What request headers say about the caller: whose jobs these are, and how the caller wants to be served."""

from __future__ import annotations

import hashlib
import json
import re

from fastapi import Request

from safelight.errors import InvalidValue
from safelight.server.database import IdempotencyKey
from safelight.server.follow import OnDisconnect
from safelight.server.keys import Caller

MAX_WAIT_S = 60
_MAX_KEY_CHARS = 255
_MAX_PRIORITY = 9


def owner_of(request: Request) -> str:
    """The name of the caller's API key, or without configured keys a hash of whatever was sent as one."""
    caller: Caller | None = request.scope.get("safelight.caller")
    return caller.name if caller else ""


def is_known(request: Request) -> bool:
    """Whether the caller may see more than the public does."""
    return request.scope.get("safelight.caller") is not None


async def idempotency_of(request: Request, client_id: str | None = None) -> IdempotencyKey | None:
    """``client_id`` or the ``Idempotency-Key``, with a hash of route and body, however the members are ordered."""
    key = client_id or request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 1 <= len(key) <= _MAX_KEY_CHARS or not key.isprintable():
        raise InvalidValue(
            f"an Idempotency-Key has 1 to {_MAX_KEY_CHARS} printable characters", param="Idempotency-Key"
        )
    digest = hashlib.sha256(f"{request.url.path}\n".encode())
    digest.update(await _canonical(request))
    return IdempotencyKey(key, digest.hexdigest())


async def _canonical(request: Request) -> bytes:
    body = await request.body()
    try:
        return json.dumps(json.loads(body or b"null"), sort_keys=True).encode()
    except ValueError:
        return body  # a form or a picture


def on_disconnect_of(request: Request, default: OnDisconnect) -> OnDisconnect:
    """``x-on-disconnect: cancel | keep``."""
    asked = request.headers.get("x-on-disconnect")
    try:
        return OnDisconnect(asked) if asked is not None else default
    except ValueError:
        raise InvalidValue(f"x-on-disconnect is {asked!r}: it is cancel or keep", param="x-on-disconnect") from None


def priority_of(request: Request) -> int:
    """``x-priority``: -9 to 9, 0 without one; it orders the jobs of one key, never those of several."""
    asked = request.headers.get("x-priority", "0")
    if not re.fullmatch(r"-?[0-9]", asked) or abs(int(asked)) > _MAX_PRIORITY:
        raise InvalidValue(f"x-priority is {asked!r}: it is a whole number from -9 to 9", param="x-priority")
    return int(asked)


def wait_of(request: Request) -> float | None:
    """Seconds that ``Prefer: wait`` or ``wait=N`` asks the server to wait, 0 for ``respond-async``, else ``None``."""
    for preference in request.headers.get("prefer", "").split(","):
        name, _, value = (part.strip() for part in preference.partition("="))
        if name == "respond-async":
            return 0.0
        if name == "wait":
            if value and not re.fullmatch(r"[0-9]{1,9}", value):
                raise InvalidValue(f"Prefer: wait={value!r} is not a number of seconds", param="Prefer")
            return float(min(max(int(value or MAX_WAIT_S), 1), MAX_WAIT_S))
    return None
