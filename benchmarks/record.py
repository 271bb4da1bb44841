"""The file of results, written after every figure: a run that is cut short leaves what it had."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.machine import circumstances

_CARD_FIELDS = ("name", "memory.total", "driver_version")
_CARD_TIMEOUT_S = 20.0


class Record:
    """Begins with machine, card, versions, commit, command and date."""

    def __init__(self, path: Path, command: str) -> None:
        self._path = path
        self._figures: dict[str, Any] = {**circumstances(command), "cards": cards()}

    def put(self, **figures: Any) -> None:
        """Sets members and writes the file."""
        self._figures |= figures
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".part")
        partial.write_text(json.dumps(self._figures, indent=2) + "\n")
        os.replace(partial, self._path)

    def append(self, name: str, figure: Any) -> None:
        """Adds to the list of that name and writes the file."""
        self.put(**{name: [*self._figures.get(name, []), figure]})


def cards() -> list[dict[str, str]]:
    """What ``nvidia-smi`` says of each card; none if it is not there."""
    query = ["nvidia-smi", f"--query-gpu={','.join(_CARD_FIELDS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=_CARD_TIMEOUT_S).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [dict(zip(_CARD_FIELDS, line.split(", "), strict=True)) for line in answer.strip().splitlines()]
