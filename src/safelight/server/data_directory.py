"""The data directory when a server takes it: its lock, and a database that is whole, or none of it."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
import stat
import time
from pathlib import Path

from safelight.errors import StoreError
from safelight.server.database import FILE_NAME, JobDatabase

log = logging.getLogger(__name__)

RESULTS = "results"
SOURCES = "sources"
COMPILE_CACHE = "compile-cache"

_SUFFIXES = ("", "-wal", "-shm")
_LOG_MAGIC = b"\x37\x7f\x06"


def lock(folder: Path) -> int:
    """The descriptor of the lock of a data directory. Raises ``StoreError`` if another server has it."""
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(fd, 32).decode(errors="replace").strip()
        os.close(fd)
        raise StoreError(
            f"the data directory {str(folder)!r} is used by another server (pid {holder}): stop it or choose --data-dir"
        ) from None
    os.ftruncate(fd, 0)
    os.write(fd, str(os.getpid()).encode())
    return fd


def compile_cache(folder: Path) -> str:
    """Where workers keep compiled kernels, for the server's user alone: whoever can write there runs code in them.

    Empty if it cannot be had, which costs time, nothing else.
    """
    path = folder.absolute() / COMPILE_CACHE
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.stat()
        if found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it belongs to another user")
        if stat.S_IMODE(found.st_mode) != 0o700:
            path.chmod(0o700)
    except OSError as error:
        log.warning("compiled kernels are not kept: %s: %s", path, error.strerror)
        return ""
    return str(path)


def open_database(folder: Path, recover: bool) -> JobDatabase:
    """Never begins with an empty database where another was, unless it is told to."""
    try:
        _check_files(folder)
        return _migrated(folder)
    except sqlite3.OperationalError as error:
        raise StoreError(f"{folder / FILE_NAME} cannot be opened: {error}") from None
    except sqlite3.DatabaseError as error:
        if not recover:
            raise StoreError(
                f"{folder / FILE_NAME} is damaged ({error}); all was left as it is: restore a copy, or start with "
                "--recover true to move it and its pictures aside and begin with an empty one"
            ) from None
    _move_aside(folder)
    return _migrated(folder)


def _check_files(folder: Path) -> None:
    """What SQLite would take for a new or an older database without a word."""
    database, log_file, index = (folder / f"{FILE_NAME}{suffix}" for suffix in _SUFFIXES)
    if not database.exists() and (folder / RESULTS).is_dir() and any((folder / RESULTS).iterdir()):
        raise sqlite3.DatabaseError("it is gone, its pictures are not")
    if index.exists() and not log_file.exists():
        raise sqlite3.DatabaseError("its write-ahead log is gone")
    if log_file.exists() and log_file.stat().st_size:
        with log_file.open("rb") as stream:
            if stream.read(len(_LOG_MAGIC)) != _LOG_MAGIC:
                raise sqlite3.DatabaseError("its write-ahead log is none")


def _move_aside(folder: Path) -> None:
    moment = int(time.time())
    for name in (*(f"{FILE_NAME}{suffix}" for suffix in _SUFFIXES), RESULTS, SOURCES):
        if (folder / name).exists():
            (folder / name).rename(folder / f"{name}.damaged-{moment}")


def _migrated(folder: Path) -> JobDatabase:
    database = JobDatabase(folder)
    try:
        database.migrate()
    except BaseException:
        database.close()
        raise
    return database
