"""What settings are given as: text that becomes a value, or a ValueError that goes on where the value was named."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from safelight.errors import SafelightError
from safelight.faults import parse as parse_faults
from safelight.params import check_size

_MIN_KEY_CHARS = 8
_MIN_LEASE_S = 2.0
_TRACES_PATH = "/v1/traces"
_CLUSTER = re.compile(r"ray(:(//)?([A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\])(:(?P<port>[0-9]{1,5}))?)?")
_DEVICE = re.compile(r"auto|cpu|cuda|all|cuda:[0-9]{1,3}(,(cuda:)?[0-9]{1,3})*")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key by its name; of the key itself only the hash is kept, in hexadecimal."""

    name: str
    sha256: str


def text(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty")
    return value


def path(value: str) -> Path:
    return Path(text(value))


def whole_number(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", value) or not low <= int(value) <= high:
            raise ValueError(f"is not a whole number from {low} to {high}")
        return int(value)

    return parse


def seconds(value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value):
        raise ValueError("is not a number of seconds")
    return float(value)


def lease(value: str) -> float:
    """Long enough for a network to hesitate."""
    if (found := seconds(value)) < _MIN_LEASE_S:
        raise ValueError(f"is less than {_MIN_LEASE_S:g} seconds")
    return found


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in choices:
            raise ValueError(f"is not one of {', '.join(choices)}")
        return value

    return parse


def truth(value: str) -> bool:
    return one_of("true", "false")(value.lower()) == "true"


def device(value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise ValueError("is not auto, cpu, cuda, all or cuda:0,1")
    indices = re.findall(r"[0-9]+", value)
    if len({int(index) for index in indices}) != len(indices):
        raise ValueError("names a device twice")
    return value


def cluster(value: str) -> str:
    """``ray``, ``ray://HOST[:PORT]``, or the same without the slashes."""
    found = _CLUSTER.fullmatch(value)
    if not found or not 0 < int(found["port"] or 1) <= 65535:
        raise ValueError("is not ray or ray://HOST[:PORT]")
    return value


def keys(value: str) -> tuple[ApiKey, ...]:
    """``NAME=KEY,NAME=sha256:HEX``. An empty value is a mistake, never an open door."""
    keys = tuple(_key(part) for part in value.split(","))
    if len({key.name for key in keys}) != len(keys):
        raise ValueError("names a key twice")
    return keys


def _key(text: str) -> ApiKey:
    name, _, key = (part.strip() for part in text.partition("="))
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or not key:
        raise ValueError("has an entry that is not NAME=KEY")
    if key.startswith("sha256:"):
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", key):
            raise ValueError("has a hash that is not sha256: and 64 hexadecimal digits")
        return ApiKey(name, key.removeprefix("sha256:"))
    if len(key) < _MIN_KEY_CHARS:
        raise ValueError(f"has a key of fewer than {_MIN_KEY_CHARS} characters")
    return ApiKey(name, hashlib.sha256(key.encode()).hexdigest())


def words(pattern: str, what: str) -> Callable[[str], tuple[str, ...]]:
    def parse(value: str) -> tuple[str, ...]:
        words = tuple(word.strip() for word in value.split(",") if word.strip())
        for word in words:
            if not re.fullmatch(pattern, word):
                raise ValueError(f"has {word!r}, which is not {what}")
        return words

    return parse


def collector(value: str) -> str:
    """The full address of a collector's traces."""
    url = urlsplit(value)
    if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
        raise ValueError("is not an address such as http://127.0.0.1:4318")
    if url.username is not None:
        raise ValueError("has a user's name in it: set OTEL_EXPORTER_OTLP_HEADERS instead")
    return value if url.path.endswith(_TRACES_PATH) else value.rstrip("/") + _TRACES_PATH


def faults(value: str) -> str:
    parse_faults(value)
    return value


def sizes(value: str) -> tuple[tuple[int, int], ...]:
    return tuple(parse_size(size) for size in value.split(",") if size)


def parse_size(value: str) -> tuple[int, int]:
    """``"1024x768"`` as (width, height) in pixels; ValueError otherwise."""
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", value)
    if not match:
        raise ValueError("is not WIDTHxHEIGHT, such as 1024x768")
    width, height = int(match[1]), int(match[2])
    try:
        check_size(width, height)
    except SafelightError as error:
        raise ValueError(f"cannot be drawn: {error.message}") from None
    return width, height
