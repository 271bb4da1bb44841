"""The models directory: ``owner/name/COMMIT/`` holds one whole snapshot with its manifest; what is under way is hidden.

A snapshot gets its name when its last file is right and on the disk, so that there is never half of one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from safelight.errors import CheckpointInvalid
from safelight.hub.errors import PullInProgress
from safelight.hub.manifest import INDEX_NAME, MANIFEST_NAME, Manifest, is_commit, read_manifest, write_manifest
from safelight.hub.model_name import ModelName
from safelight.hub.verification import verdict_of, write_verdicts

_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,40}")


def find_snapshot(models_dir: Path, model: ModelName) -> Path | None:
    """The snapshot that was pulled last, of those of that revision if one is named, or its one file that is meant.

    ``None`` if there is none.
    """
    needed = model.file or INDEX_NAME
    found = [
        (manifest.pulled_at, folder)
        for folder, manifest in Snapshots(models_dir, model.repository)
        if needed in manifest.files and (model.revision is None or _is_of(manifest, model.revision))
    ]
    return max(found)[1] / (model.file or "") if found else None


def _is_of(manifest: Manifest, revision: str) -> bool:
    is_hash = _SHORT_COMMIT.fullmatch(revision) is not None
    return manifest.revision == revision or (is_hash and manifest.commit.startswith(revision))


class Snapshots:
    """Those of one repository, with their manifests. Iterating skips what is not readable."""

    def __init__(self, models_dir: Path, repository: str) -> None:
        self.folder = models_dir.absolute() / repository
        self._partial = self.folder / ".partial"

    def __iter__(self) -> Iterator[tuple[Path, Manifest]]:
        for path in sorted(self.folder.glob("*")):
            with contextlib.suppress(CheckpointInvalid):
                if is_commit(path.name) and (manifest := read_manifest(path)) is not None:
                    yield path, manifest

    def manifest(self, commit: str) -> Manifest | None:
        """That of one snapshot, ``None`` if there is none that can be read."""
        with contextlib.suppress(CheckpointInvalid):
            return read_manifest(self.folder / commit)
        return None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folders, and keeps other pulls of this repository out. Raises ``PullInProgress``, ``OSError``."""
        self._partial.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PullInProgress(f"another pull writes to {self.folder}: wait until it has ended") from None
        else:
            yield
        finally:
            os.close(fd)

    def partial(self, object_id: str) -> Path:
        """Where a file with this hash grows: if it changes on the hub, it is another one."""
        return self._partial / object_id

    def publish(self, manifest: Manifest, sources: Mapping[str, Path]) -> Path:
        """Makes a snapshot of files that are right, by their path in it; all at once. Raises ``OSError``."""
        final, made = self.folder / manifest.commit, self.folder / f".new-{manifest.commit}"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(mode=0o700)
        for name, source in sources.items():
            path = made / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _link(source, path)
        write_verdicts(made, {name: verdict_of(made / name) for name in sources})
        write_manifest(made, manifest)
        for path in (made / MANIFEST_NAME, *(path for path in made.rglob("*") if path.is_dir()), made):
            _flush(path)
        self._take_the_place(made, final)
        _flush(self.folder)
        shutil.rmtree(self._partial, ignore_errors=True)
        return final

    def _take_the_place(self, made: Path, final: Path) -> None:
        old = self.folder / f".old-{final.name}"
        shutil.rmtree(old, ignore_errors=True)
        if final.exists():
            final.rename(old)
        made.rename(final)
        shutil.rmtree(old, ignore_errors=True)


def _link(source: Path, path: Path) -> None:
    try:
        path.hardlink_to(source)
    except OSError:  # some network and removable disks have no links
        shutil.copyfile(source, path)
        _flush(path)


def _flush(path: Path) -> None:
    """To the disk, as far as the file system can."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)
