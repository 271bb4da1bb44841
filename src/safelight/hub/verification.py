"""Checks the files of a model against its manifest, and remembers which were right.

A file whose inode, time of change and size are as they were when its hash was right is not read again: a second start
costs nothing. The verdicts lie beside the manifest; where they cannot be written, every start reads all files.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from safelight.errors import CheckpointInvalid
from safelight.hub.manifest import MANIFEST_NAME, FileRecord, Manifest, read_manifest

VERDICTS_NAME = ".safelight-verified.json"

_THREADS = 4
_PIECE_BYTES = 4 * 2**20

Verdict = tuple[int, int, int]
"""Inode, time of the last change in nanoseconds, size in bytes."""


def verify(
    folder: Path, on_file: Callable[[str], None] = lambda _: None, is_used: Callable[[str], bool] = lambda _: True
) -> None:
    """Does nothing without a manifest. ``on_file`` is called with each file whose turn it is, and may raise; those that
    are not used are not looked at.

    Raises ``CheckpointInvalid``, naming the first file that is not as the manifest says, or that it does not know.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return
    with _one_at_a_time(folder / MANIFEST_NAME):
        wrong = damaged(folder, manifest, on_file, is_used)
    for sentence in wrong.values():
        raise CheckpointInvalid(f"{sentence}: `safelight pull {manifest.repository}@{manifest.commit}` repairs it")
    for name in filter(is_used, _unlisted(folder, manifest)):
        raise CheckpointInvalid(f"{folder / name} is not in the model's manifest: remove it")


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Of the workers of several cards one reads, and the others then find its verdicts."""
    with path.open("rb") as file:
        with contextlib.suppress(OSError):  # a network disk without locks: they all read
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def damaged(
    folder: Path,
    manifest: Manifest,
    on_file: Callable[[str], None] = lambda _: None,
    is_used: Callable[[str], bool] = lambda _: True,
) -> dict[str, str]:
    """What is wrong with each file that is not as the manifest says, by name; empty if all is well."""
    known = _read_verdicts(folder)
    verdicts = {name: verdict for name, verdict in known.items() if name in manifest.files and not is_used(name)}
    wrong: dict[str, str] = {}
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as threads:
        checks = {
            name: threads.submit(_check, folder / name, record, known.get(name))
            for name, record in manifest.files.items()
            if is_used(name)
        }
        try:
            for name, check in checks.items():
                on_file(name)
                found = check.result()
                if isinstance(found, str):
                    wrong[name] = found
                else:
                    verdicts[name] = found
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    if verdicts != known:
        write_verdicts(folder, verdicts)
    return wrong


def _check(path: Path, record: FileRecord, known: Verdict | None) -> Verdict | str:
    try:
        with path.open("rb", buffering=0) as file:
            found = _verdict(os.fstat(file.fileno()))
            if found[2] != record.size_bytes:
                return f"{path} has {found[2]} bytes, not {record.size_bytes}"
            if found == known:
                return found
            digest = hashlib.sha256()
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return found if digest.hexdigest() == record.sha256 else f"{path} is damaged: its hash is not the manifest's"


def verdict_of(path: Path) -> Verdict:
    """Of a file that was just found to be right."""
    return _verdict(path.stat())


def _verdict(found: os.stat_result) -> Verdict:
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read_verdicts(folder: Path) -> dict[str, Verdict]:
    with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode((folder / VERDICTS_NAME).read_bytes(), type=dict[str, Verdict])
    return {}


def write_verdicts(folder: Path, verdicts: dict[str, Verdict]) -> None:
    """What cannot be written costs time at the next start, nothing else."""
    temporary = folder / f"{VERDICTS_NAME}.{os.getpid()}"
    try:
        temporary.write_bytes(msgspec.json.encode(verdicts))
        temporary.replace(folder / VERDICTS_NAME)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _unlisted(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Files beside the manifest's, which a loader might prefer to those: all but hidden ones, in the same folders."""
    for part in sorted({Path(name).parent for name in manifest.files} - {Path()}):
        for path in sorted((folder / part).iterdir()):
            name = (part / path.name).as_posix()
            if path.is_file() and not path.name.startswith(".") and name not in manifest.files:
                yield name
