"""The pictures of finished jobs, as files: written whole or not at all, readable by this user only.

Several threads may write at once: so many calls that wait for a disk take little longer than one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from safelight.faults import fault
from safelight.jobs import JobOutcome, JobResult, ResultImage
from safelight.protocol import EncodedImage, Succeeded

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
        self._has_new_names = False  # before the call: a name that comes meanwhile may need another
        try:
            fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except BaseException:
            self._has_new_names = True
            raise

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


class PictureFiles(ResultFiles):
    """The same for what jobs came to."""

    def keep(self, job_id: str, attempt: int, done: Succeeded) -> JobResult:
        """Writes all pictures of an attempt."""
        images = [_result_image(job_id, attempt, index, image) for index, image in enumerate(done.images)]
        for image, encoded in zip(images, done.images, strict=True):
            self.write(image.file, encoded.data)
        return JobResult(images, done.warnings, done.text_tokens, done.seconds)

    def drop(self, outcome: JobOutcome | None) -> None:
        """Removes the pictures of an attempt, if there are any."""
        if isinstance(outcome, JobResult):
            for image in outcome.images:
                self.delete(image.file)


def _result_image(job_id: str, attempt: int, index: int, image: EncodedImage) -> ResultImage:
    # With the attempt in its name no late writer can touch the file of another attempt.
    name = f"{job_id}-{attempt}-{index}.{image.format}"
    return ResultImage(name, image.format, image.seed, image.width, image.height, len(image.data))
