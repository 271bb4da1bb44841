"""The reference in ``docs/configuration.md``, made from the settings: ``python -m scripts.configuration_reference``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import Field
from pathlib import Path
from typing import Any

from safelight.config import ENV_PREFIX, settings

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"

_REGION = re.compile(r"(<!-- made from the settings: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def written(page: str) -> str:
    """The page with its marked regions as the settings have them now."""
    return _REGION.sub(lambda region: f"{region[1]}\n{_PARTS[region[2]]()}\n{region[3]}", page)


def default_of(setting: Field[Any]) -> str:
    """The default as a person would type it after the flag; empty for none."""
    default = setting.default
    if default is None or default == ():
        return ""
    if isinstance(default, float) and default.is_integer():
        return str(int(default))
    return str(default).lower() if isinstance(default, bool) else str(default)


def _table() -> str:
    """One row per setting; pipes would end a cell."""
    rows = ["| setting | environment | default | meaning |", "|---|---|---|---|"]
    for setting in settings():
        default = f"`{default_of(setting)}`" if default_of(setting) else "empty"
        meaning = setting.metadata["help"].replace("|", "\\|")
        rows.append(f"| `{setting.name}` | `{ENV_PREFIX}{setting.name.upper()}` | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def _toml() -> str:
    """A file that changes nothing: every setting at its default, commented out where it has none."""
    return "```toml\n" + "\n".join(line for setting in settings() for line in _toml_lines(setting)) + "\n```\n"


def _toml_lines(setting: Field[Any]) -> Iterator[str]:
    yield f"# {setting.metadata['help']}"
    if isinstance(setting.default, tuple) and not setting.metadata["is_secret"]:
        yield f"{setting.name} = []"
    elif setting.default is None or setting.metadata["is_secret"]:
        yield f"# {setting.name} ="
    else:
        is_bare = isinstance(setting.default, bool | int | float)
        yield f"{setting.name} = {default_of(setting) if is_bare else json.dumps(str(setting.default))}"


_PARTS: dict[str, Callable[[], str]] = {"table": _table, "file": _toml}

if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
