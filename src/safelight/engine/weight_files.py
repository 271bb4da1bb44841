"""In which order a checkpoint's weights are read, and reading them into the kernel's cache before they are needed."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue

import psutil

from safelight.checkpoint import Checkpoint, Component

_THREADS = 4
_SLICE_BYTES = 64 * 2**20
_MEMORY_SHARE = 0.5


def in_loading_order(checkpoint: Checkpoint) -> list[Component]:
    """The smallest weights first: their modules are soon made, and the threads that read have work at once.

    Last the parts without weights, which are made while the last bytes move.
    """
    return sorted(checkpoint.components, key=lambda component: (not component.weight_bytes, component.weight_bytes))


def read_ahead(checkpoint: Checkpoint) -> None:
    """Begins to read the weights from the disk and returns at once, so that imports and the disk work side by side.

    Does nothing where the files would fill more than half of the free memory, or where the system has no way for it.
    """
    if not hasattr(os, "sendfile") or checkpoint.weight_bytes > _MEMORY_SHARE * psutil.virtual_memory().available:
        return
    files: SimpleQueue[Path] = SimpleQueue()
    for path in _all_files(checkpoint):
        files.put(path)
    for index in range(_THREADS):
        # Daemons: nobody waits for them, and a worker that ends has no use for what they would still read.
        threading.Thread(target=_read, args=(files,), name=f"read_ahead_{index}", daemon=True).start()


def _all_files(checkpoint: Checkpoint) -> Iterator[Path]:
    for component in in_loading_order(checkpoint):
        yield from component.files


def _read(files: SimpleQueue[Path]) -> None:
    # What cannot be read is the loader's to say.
    with contextlib.suppress(Empty, OSError), open(os.devnull, "wb") as nowhere:
        while True:
            with files.get_nowait().open("rb") as file:
                _read_into_cache(file.fileno(), nowhere.fileno())


def _read_into_cache(file: int, nowhere: int) -> None:
    """To the null device nothing is copied, only read. ``POSIX_FADV_WILLNEED`` stops after one read-ahead window."""
    offset = 0
    while sent := os.sendfile(nowhere, file, offset, _SLICE_BYTES):
        offset += sent
