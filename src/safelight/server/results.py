"""The pictures of finished jobs, as files: written whole or not at all, readable by this user only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from safelight.faults import fault

_TEMPORARY = ".tmp"


class ResultFiles:
    """A folder of files under names that this server made. Methods raise ``OSError``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._has_new_names = False
        folder.mkdir(mode=0o700, exist_ok=True)

    def path(self, name: str) -> Path:
        """Where the file of that name is, or would be."""
        return self._folder / name

    def write(self, name: str, data: bytes) -> None:
        """To a temporary file, to the disk, and only then under its name; a failure leaves nothing."""
        temporary = self._folder / (name + _TEMPORARY)
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as stream:
                fault("results.write")
                stream.write(data)
                stream.flush()
                fault("results.sync")
                os.fsync(fd)
            fault("results.rename")
            temporary.replace(self._folder / name)
            self._has_new_names = True
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def sync(self) -> None:
        """Makes the names of files that were written durable; their contents are."""
        if not self._has_new_names:
            return
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
            self._has_new_names = False
        finally:
            os.close(fd)

    def delete(self, name: str) -> None:
        """Removes a file; one that is not there is removed already."""
        with contextlib.suppress(FileNotFoundError):
            (self._folder / name).unlink()

    def keep_only(self, names: Collection[str]) -> int:
        """Removes what a killed server left half done; how many files that were."""
        strays = [entry.name for entry in os.scandir(self._folder) if entry.name not in names]
        for name in strays:
            self.delete(name)
        return len(strays)
