"""The models that a server is configured with: the tables ``[[models]]`` of its settings file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from safelight.errors import ConfigError

OWN_SETTINGS = (
    "base_model",
    "dtype",
    "precision",
    "memory",
    "memory_limit_mb",
    "step_cache",
    "batch_limit",
    "warmup_sizes",
    "idle_unload_s",
)
"""Settings that a model may have of its own; without them, the server's hold for it."""

_NAME = re.compile(r"[A-Za-z0-9][\w.@-]*(/[\w.@-]+)*", re.ASCII)
_MAX_NAME_CHARS = 200
_ROUTES = ("load", "unload", "pin", "unpin", "ready", "predictions")

Parse = Callable[[str, str, str], Any]
"""From a setting's name, where it stands, and its text; raises ``ConfigError``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """``name`` is how requests call it, empty: as its files say. ``own`` are the settings that hold for it alone."""

    model: str
    name: str = ""
    is_pinned: bool = False
    own: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What tells it from the others, and what a job remembers."""
        return self.name or self.model


def read_model_list(source: str, tables: object, parse: Parse) -> tuple[ModelEntry, ...]:
    """Raises ``ConfigError`` naming key and value."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{source} is {tables!r}: models are tables that begin with [[models]]", param="models")
    entries = tuple(_entry(f"{source}[{number}]", table, parse) for number, table in enumerate(tables, 1))
    seen: set[str] = set()
    for number, entry in enumerate(entries, 1):
        if entry.key in seen:
            raise ConfigError(
                f"{source}[{number}] has the name {entry.key!r}, as one before it: names tell models apart",
                param="models",
            )
        seen.add(entry.key)
    return entries


def _entry(source: str, table: Mapping[str, object], parse: Parse) -> ModelEntry:
    known = ("name", "model", "pinned", *OWN_SETTINGS)
    for key in table:
        if key not in known:
            raise ConfigError(f"{source}.{key} is not a setting of a model: {', '.join(known)} are", param="models")
    if "model" not in table:
        raise ConfigError(f"{source} has no model: a directory, or a name as --model takes it", param="models")
    own = {key: parse(key, f"{source}.{key}", as_text(table[key])) for key in OWN_SETTINGS if key in table}
    return ModelEntry(
        model=parse("model", f"{source}.model", as_text(table["model"])),
        name=_name(f"{source}.name", table["name"]) if "name" in table else "",
        is_pinned=_truth(f"{source}.pinned", table.get("pinned", False)),
        own=own,
    )


def _name(source: str, value: object) -> str:
    name = as_text(value)
    if len(name) > _MAX_NAME_CHARS or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{source}={name!r} is not a name: letters, digits and . _ - @, in parts between slashes", param="models"
        )
    if name.rpartition("/")[2] in _ROUTES:
        raise ConfigError(f"{source}={name!r} ends as routes do ({', '.join(_ROUTES)}): choose another", param="models")
    return name


def _truth(source: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{source}={value!r} is not one of true, false", param="models")
    return value


def as_text(value: object) -> str:
    """A TOML value as a flag would have it; lists are joined by commas."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
