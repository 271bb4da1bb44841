"""One file: its bytes appended to what an earlier pull left, its hash taken on the way and checked at the end."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from safelight.hub.client import HubClient, HubFile
from safelight.hub.errors import DownloadCorrupt
from safelight.hub.manifest import FileRecord
from safelight.hub.model_name import ModelName

Downloaded = tuple[Path, FileRecord]
OnBytes = Callable[[str, int], None]
"""Called with the file's name, and how many of its bytes there are."""

_PIECE_BYTES = 2**20
_GIT_HASH_CHARS = 40


class _Hashes:
    """SHA-256, which the manifest has; and git's, which is all that the hub knows of small files."""

    def __init__(self, file: HubFile) -> None:
        self._expected = file.object_id
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(f"blob {file.size_bytes}\0".encode(), usedforsecurity=False)
        self._is_git = len(file.object_id) == _GIT_HASH_CHARS
        self.size_bytes = 0

    def update(self, piece: bytes) -> None:
        self.size_bytes += len(piece)
        self._sha256.update(piece)
        if self._is_git:
            self._git.update(piece)

    @property
    def is_right(self) -> bool:
        return (self._git if self._is_git else self._sha256).hexdigest() == self._expected

    @property
    def record(self) -> FileRecord:
        return FileRecord(self.size_bytes, self._sha256.hexdigest())


def download(
    client: HubClient, model: ModelName, commit: str, file: HubFile, partial: Path, on_bytes: OnBytes
) -> FileRecord:
    """Completes ``partial``; a wrong one is begun anew once.

    Raises ``DownloadCorrupt`` if that is wrong as well, any other leaf of ``PullError``, or ``OSError``.
    """
    for _ in range(2):
        hashes = _complete(client, model, commit, file, partial, on_bytes)
        if hashes.is_right:
            return hashes.record
        partial.unlink()
    raise DownloadCorrupt(
        f"{file.name} of {model} arrived damaged twice: its hash is not the one that the hub promises; "
        "a proxy in between may change it, or try again later"
    )


def _complete(
    client: HubClient, model: ModelName, commit: str, file: HubFile, partial: Path, on_bytes: OnBytes
) -> _Hashes:
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open(fd, "r+b", buffering=0) as stream:  # unbuffered: what came is kept, however this process ends
        hashes = _read(client, file, stream, on_bytes)
        for offset, piece in client.content(model, commit, file, hashes.size_bytes):
            client.check()
            if offset != hashes.size_bytes:  # the host sends all of it again
                hashes = _Hashes(file)
                stream.seek(0)
                stream.truncate()
            _write(stream, piece)
            hashes.update(piece)
            on_bytes(file.name, hashes.size_bytes)
            if hashes.size_bytes > file.size_bytes:
                break
        os.fsync(fd)
    return hashes


def _read(client: HubClient, file: HubFile, stream: BinaryIO, on_bytes: OnBytes) -> _Hashes:
    """What is there already."""
    hashes = _Hashes(file)
    while piece := stream.read(_PIECE_BYTES):
        client.check()
        hashes.update(piece)
        on_bytes(file.name, hashes.size_bytes)
    return hashes


def _write(stream: BinaryIO, piece: bytes) -> None:
    """All of it: an unbuffered file may take less at a time."""
    view = memoryview(piece)
    while view:
        view = view[stream.write(view) :]
