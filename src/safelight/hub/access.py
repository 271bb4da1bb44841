"""Which hub is asked, and the token that it gets: known to ``safelight pull`` alone, and shown nowhere."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from safelight.config import HUB_TOKEN_VARIABLES
from safelight.errors import ConfigError

DEFAULT_ENDPOINT = "https://huggingface.co"
ENDPOINT_VARIABLE = "HF_ENDPOINT"

_TOKEN = re.compile(r"[!-~]{1,1000}")


@dataclass(frozen=True, slots=True)
class HubAccess:
    """``token_source`` says where the token is from, for sentences about it."""

    endpoint: str
    token: str | None = field(default=None, repr=False)
    token_source: str = ""


def read_access(endpoint: str | None, token_file: Path | None, environment: Mapping[str, str]) -> HubAccess:
    """The hub that is meant, and the first token that there is. Raises ``ConfigError``."""
    address = _checked(endpoint or environment.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT)
    token, source = _find_token(token_file, environment)
    if token is not None and not _TOKEN.fullmatch(token):
        raise ConfigError(f"{source} holds no token: one line of letters, digits and signs")
    if token is not None and address.startswith("http:") and not _is_loopback(address):
        raise ConfigError(f"the token of {source} would go to {address} for everybody to read: use https, or no token")
    return HubAccess(address, token, source)


def _checked(endpoint: str) -> str:
    try:
        url = urlsplit(endpoint)
        is_right = url.scheme in ("http", "https") and bool(url.hostname) and not url.query and not url.fragment
        is_right = is_right and (url.port is None or url.port > 0)
    except ValueError:
        is_right = False
    if not is_right or not endpoint.isprintable():
        raise ConfigError(f"--endpoint={endpoint!r} is not an address such as {DEFAULT_ENDPOINT}", param="endpoint")
    if url.username is not None or url.password is not None:
        raise ConfigError("--endpoint has a user's name or password in it: give a token instead", param="endpoint")
    return endpoint.rstrip("/")


def _is_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _find_token(token_file: Path | None, environment: Mapping[str, str]) -> tuple[str | None, str]:
    if token_file is not None:
        return _read(token_file), f"--token-file {token_file}"
    for name in HUB_TOKEN_VARIABLES:
        if value := environment.get(name, "").strip():
            return value, name
    file = _login_file(environment)
    return (_read(file), str(file)) if file.is_file() else (None, "")


def _login_file(environment: Mapping[str, str]) -> Path:
    """Where ``hf auth login`` keeps it."""
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    home = environment.get("HF_HOME") or f"{cache}/huggingface"
    return Path(environment.get("HF_TOKEN_PATH") or f"{home}/token").expanduser()


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise ConfigError(f"the token file {str(file)!r} cannot be read: {error.strerror}") from None
