"""The manifest of a downloaded model: where it came from, and the size and hash of every file."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import msgspec

from safelight.errors import CheckpointInvalid

MANIFEST_NAME = "safelight-manifest.json"
INDEX_NAME = "model_index.json"
"""What a whole checkpoint has, and a snapshot of single files has not."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


class FileRecord(msgspec.Struct, frozen=True):
    """What one file must be."""

    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """``files`` are all files of the snapshot by their path in it; ``revision`` is what was asked for.

    ``pulled_at`` is in seconds since the epoch.
    """

    repository: str
    commit: str
    revision: str
    endpoint: str
    pulled_at: float
    files: dict[str, FileRecord]


def has_manifest(folder: Path) -> bool:
    """Whether the folder was pulled, so that its files can be checked."""
    return (folder / MANIFEST_NAME).exists()


def read_manifest(folder: Path) -> Manifest | None:
    """``None`` if the folder has none. Raises ``CheckpointInvalid`` if it cannot be read."""
    path = folder / MANIFEST_NAME
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointInvalid(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointInvalid(f"{path} is not what it should be: {error}") from None
    for name in manifest.files:
        if not is_inside(name):
            raise CheckpointInvalid(f"{path} names a file outside its folder: {name!r}")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replaces it at once. Raises ``OSError``."""
    temporary = folder / f".{MANIFEST_NAME}"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
    temporary.replace(folder / MANIFEST_NAME)


def is_inside(name: str) -> bool:
    """Whether a path that others wrote stays below the folder that it is joined to."""
    path = PurePosixPath(name)
    is_plain = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    return is_plain and name.isprintable() and "\\" not in name and str(path) == name


def is_commit(revision: str) -> bool:
    """Whether it names one state of a repository for good, unlike a branch or a tag."""
    return _COMMIT.fullmatch(revision) is not None
