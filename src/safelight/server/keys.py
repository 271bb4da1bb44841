"""API keys: who a request comes from. Only their hashes are known here, and all of them are compared every time."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers

from safelight.setting_values import ApiKey

_KEY_HEADERS = ("x-key", "api-key", "x-api-key", "x-goog-api-key")
_SCHEMES = ("bearer", "token", "key")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose request it is. ``name`` is that of the key, never the key."""

    name: str
    is_admin: bool


class ApiKeys:
    """Without any key everybody is admitted, and what a client sends as a key only tells callers apart."""

    def __init__(self, keys: Sequence[ApiKey], admin_keys: Sequence[ApiKey]) -> None:
        self._keys = [(key, False) for key in keys] + [(key, True) for key in admin_keys]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def caller(self, headers: Headers) -> Caller | None:
        """``None`` if keys are required and none of those that were sent is one."""
        digests = [hashlib.sha256(key).hexdigest() for key in _sent_keys(headers)]
        if not self._keys:
            return Caller(digests[0][:32] if digests else "", is_admin=True)
        found: Caller | None = None
        for key, is_admin in self._keys:
            for digest in digests:
                if hmac.compare_digest(key.sha256, digest):
                    found = Caller(key.name, is_admin)
        return found


def _sent_keys(headers: Headers) -> list[bytes]:
    """In every form that clients use. Latin-1 gives back the bytes that were sent."""
    sent = [headers[name].strip().encode("latin-1") for name in _KEY_HEADERS if headers.get(name, "").strip()]
    for value in headers.getlist("authorization"):
        scheme, _, rest = value.partition(" ")
        if scheme.lower() == "basic":
            sent += _basic_halves(rest)
        elif scheme.lower() in _SCHEMES and rest.strip():
            sent.append(rest.strip().encode("latin-1"))
    return sent


def _basic_halves(value: str) -> list[bytes]:
    """User and password: either may be the key. Some clients send both empty when they have none."""
    try:
        user, _, password = base64.b64decode(value, validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return []
    return [half for half in (user, password) if half]
