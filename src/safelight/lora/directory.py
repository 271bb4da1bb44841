"""Where adapters lie, and which one a name means."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from safelight.checkpoint import Checkpoint
from safelight.errors import InvalidValue, LoraInvalid
from safelight.lora.adapter_file import AdapterFile, Identity, read_adapter
from safelight.params import LORA_NAME

SUFFIX = ".safetensors"
EMBEDDED_FOLDER = "loras"
"""Of a checkpoint, for adapters that come with it."""

_Read = AdapterFile | LoraInvalid


class AdapterDirectories:
    """Folders of ``NAME.safetensors``; of two of one name the one in the earlier folder counts.

    What was read is kept for as long as the file is the same. May be used from several threads.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = tuple(folders)
        self._read: dict[Path, tuple[Identity, _Read]] = {}

    @classmethod
    def of(cls, checkpoint: Checkpoint, loras_dir: Path | str) -> AdapterDirectories:
        """Those of ``loras_dir`` (empty: none), and those that come with the model."""
        return cls([*([Path(loras_dir)] if loras_dir else []), checkpoint.path / EMBEDDED_FOLDER])

    def names(self) -> list[str]:
        """All that can be asked for, sorted. Files whose names cannot be are left out."""
        found: set[str] = set()
        for folder in self._folders:
            # os, not pathlib: a folder that is not there or may not be read has none.
            try:
                entries = os.listdir(folder)
            except OSError:
                continue
            found |= {entry.removesuffix(SUFFIX) for entry in entries if entry.endswith(SUFFIX)}
        return sorted((name for name in found if re.fullmatch(LORA_NAME, name)), key=str.casefold)

    def read(self, name: str) -> AdapterFile:
        """Raises ``InvalidValue`` if there is none of this name, ``LoraInvalid`` if it is not one."""
        path = self._find(name)
        try:
            identity = Identity.of(path.stat())
        except OSError:
            raise _unknown(name) from None
        known, found = self._read.get(path, (None, None))
        if known != identity or found is None:
            found = _try_to_read(name, path)
            self._read[path] = identity, found
        if isinstance(found, LoraInvalid):
            raise found
        return found

    def _find(self, name: str) -> Path:
        if re.fullmatch(LORA_NAME, name):
            for folder in self._folders:
                path = folder / f"{name}{SUFFIX}"
                if path.exists():
                    return path
        raise _unknown(name)


def _unknown(name: str) -> InvalidValue:
    return InvalidValue(f"there is no LoRA adapter {name!r}: GET /v1/loras lists all that there are", param="loras")


def _try_to_read(name: str, path: Path) -> _Read:
    try:
        return read_adapter(name, path)
    except LoraInvalid as error:
        return error
