"""Downloads what a model needs, several files at once, and publishes it as one snapshot when all of it is right."""

from __future__ import annotations

import contextlib
import errno
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from safelight.hub.client import HubClient, HubFile, Listing
from safelight.hub.download import Downloaded, download
from safelight.hub.errors import DiskFull, ModelsDirectoryUnusable
from safelight.hub.manifest import INDEX_NAME, Manifest, is_commit, write_manifest
from safelight.hub.model_name import ModelName
from safelight.hub.selection import needed_files
from safelight.hub.snapshots import Snapshots
from safelight.hub.verification import damaged

_FILES_AT_ONCE = 4
_SPARE_BYTES = 64_000_000


class Progress(Protocol):
    """Who watches a pull. Its methods are called from any thread."""

    def planned(self, file_bytes: Mapping[str, int], there_bytes: Mapping[str, int]) -> None:
        """Sizes of the files that it needs, and of what there is of them already."""

    def advanced(self, name: str, done_bytes: int) -> None:
        """So many bytes of a file are on the disk; fewer than before if it began anew."""

    def finished(self, name: str) -> None:
        """The hash of a file was right."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """The snapshot; ``downloaded_bytes`` is 0 if all of it was there."""

    folder: Path
    manifest: Manifest
    downloaded_bytes: int


class Pull:
    """One model into one models directory. ``check_index`` looks at ``model_index.json`` before the weights come."""

    def __init__(
        self,
        client: HubClient,
        models_dir: Path,
        model: ModelName,
        folders: Collection[str],
        check_index: Callable[[Path], object],
        progress: Progress,
    ) -> None:
        self._client = client
        self._model = model
        self._folders = frozenset(folders)
        self._check_index = check_index
        self._progress = progress
        self._snapshots = Snapshots(models_dir, model.repository)

    def run(self) -> Pulled:
        """Raises a leaf of ``PullError``, or what ``check_index`` raises; what was downloaded is kept for the next."""
        # A commit never changes: if it is here and whole, nobody needs to be asked.
        pinned = self._whole(self._revision) if is_commit(self._revision) else None
        if pinned is not None and not self._is_all_in(pinned):
            pinned = None
        work = partial(self._again, pinned) if pinned else partial(self._pull, self._client.listing(self._model))
        with _as_ours(self._snapshots.folder), self._snapshots.locked():
            return work()

    def _whole(self, commit: str) -> Manifest | None:
        manifest = self._snapshots.manifest(commit)
        if manifest is None or damaged(self._snapshots.folder / commit, manifest):
            return None
        return manifest

    def _is_all_in(self, manifest: Manifest) -> bool:
        """Whether what is asked for was pulled, as far as can be told without the hub."""
        if self._model.file is not None:
            return self._model.file in manifest.files
        return self._folders <= {name.rpartition("/")[0] for name in manifest.files}

    def _again(self, known: Manifest) -> Pulled:
        """Pulled once more: from now on it is the one that the model's name means."""
        manifest = msgspec.structs.replace(known, revision=self._revision, pulled_at=time.time())
        folder = self._snapshots.folder / manifest.commit
        write_manifest(folder, manifest)
        return Pulled(folder, manifest, 0)

    def _pull(self, listing: Listing) -> Pulled:
        files = needed_files(self._model, listing.files, self._folders)
        known = self._whole(listing.commit)
        if known is not None and known.files.keys() >= {file.name for file in files}:
            return self._again(known)
        have = self._stored(listing.commit, files)
        missing = [file for file in files if file.name not in have]
        partial_bytes = {file.name: _size_of(self._snapshots.partial(file.object_id)) for file in missing}
        self._check_space(sum(file.size_bytes - partial_bytes[file.name] for file in missing))
        there_bytes = partial_bytes | {name: record.size_bytes for name, (_, record) in have.items()}
        self._progress.planned({file.name: file.size_bytes for file in files}, there_bytes)
        made = self._kept(listing.commit) | have | self._download(listing.commit, missing)
        manifest = Manifest(
            repository=self._model.repository,
            commit=listing.commit,
            revision=self._revision,
            endpoint=self._client.access.endpoint,
            pulled_at=time.time(),
            files={name: record for name, (_, record) in sorted(made.items())},
        )
        folder = self._snapshots.publish(manifest, {name: path for name, (path, _) in made.items()})
        return Pulled(folder, manifest, sum(file.size_bytes for file in missing))

    @property
    def _revision(self) -> str:
        return self._model.revision or "main"

    def _stored(self, commit: str, files: Sequence[HubFile]) -> dict[str, Downloaded]:
        """Those that snapshots of this repository have, and that are whole."""
        found: dict[str, Downloaded] = {}
        for folder, manifest in self._snapshots:
            broken = damaged(folder, manifest)
            whole = {name: record for name, record in manifest.files.items() if name not in broken}
            by_hash = {record.sha256: name for name, record in whole.items()}
            for file in files:
                name = file.name if manifest.commit == commit else by_hash.get(file.object_id, "")
                if name in whole:
                    found[file.name] = folder / name, whole[name]
        return found

    def _kept(self, commit: str) -> dict[str, Downloaded]:
        """What was pulled of this commit by other names: the whole beside its single files, and these one by one."""
        manifest = self._snapshots.manifest(commit)
        if manifest is None:
            return {}
        folder = self._snapshots.folder / commit
        broken = damaged(folder, manifest)
        return {
            name: (folder / name, record)
            for name, record in manifest.files.items()
            if name not in broken and (self._model.file or name.rpartition("/")[0] not in self._folders)
        }

    def _check_space(self, need_bytes: int) -> None:
        free_bytes = shutil.disk_usage(self._snapshots.folder).free
        if need_bytes + _SPARE_BYTES > free_bytes:
            raise DiskFull(
                f"{self._model} needs {need_bytes / 1e9:.1f} GB more in {self._snapshots.folder}, "
                f"{free_bytes / 1e9:.1f} GB are free: free some, or choose another disk with --models-dir"
            )

    def _download(self, commit: str, files: Sequence[HubFile]) -> dict[str, Downloaded]:
        """The index before the others: who may not read it may read none, and what it says may end it all."""
        index = [file for file in files if file.name == INDEX_NAME]
        done = self._download_together(commit, index)
        if index:
            self._check_index(done[INDEX_NAME][0])
        return done | self._download_together(commit, [file for file in files if file not in index])

    def _download_together(self, commit: str, files: Sequence[HubFile]) -> dict[str, Downloaded]:
        by_object = {file.object_id: file for file in files}
        with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="pull") as threads:
            work: dict[Future[Downloaded], str] = {
                threads.submit(self._download_one, commit, file): object_id for object_id, file in by_object.items()
            }
            try:
                done = {work[future]: future.result() for future in as_completed(work)}
            except BaseException:
                self._client.stop()
                threads.shutdown(cancel_futures=True)
                raise
        for file in files:
            self._progress.finished(file.name)  # also those that are the same as another
        return {file.name: done[file.object_id] for file in files}

    def _download_one(self, commit: str, file: HubFile) -> Downloaded:
        path = self._snapshots.partial(file.object_id)
        record = download(self._client, self._model, commit, file, path, self._progress.advanced)
        self._progress.finished(file.name)
        return path, record


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextlib.contextmanager
def _as_ours(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space is left in {folder}: free some, then run the same command again") from None
        raise ModelsDirectoryUnusable(
            f"{folder} cannot be written: {error.strerror or error}: change its permissions, or choose --models-dir"
        ) from None
