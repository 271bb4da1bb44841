"""``JobStore``: what outlives the process, and the only door to it from the event loop.

One thread writes to the database, another reads, so that finished pictures are served while a write waits for a lock;
a few write files, which are on disk before the database tells of them. No SQLite call and no file is touched on the
loop. Changes that wait for the disk reach it together (``write_thread.py``).
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from safelight.errors import SafelightError, StorageFull, StorageUnavailable, StoreError
from safelight.faults import fault
from safelight.jobs import COMPLETED, Job, JobError, JobOutcome, JobResult, JobStatus
from safelight.protocol import Succeeded
from safelight.server.data_directory import RESULTS, SOURCES, lock, open_database
from safelight.server.database import IdempotencyKey, JobDatabase
from safelight.server.results import PictureFiles, ResultFiles
from safelight.server.write_thread import Change, WriteThread

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_FILE_THREADS = 4

_PROBE_NAME = "probe"
_PROBE_BYTES = 64 * 1024
_PRUNE_BATCH = 100


class JobStore:
    """Made by ``open`` before the loop runs; ``trouble`` says why the last change could not be written, if so."""

    def __init__(self, folder: Path, lock_fd: int, database: JobDatabase) -> None:
        self.trouble: SafelightError | None = None
        self.results = PictureFiles(folder / RESULTS)
        self.sources = ResultFiles(folder / SOURCES)
        self._folder = folder
        self._lock_fd = lock_fd
        self._database = database
        self._reader = JobDatabase(folder)
        self._write_thread = WriteThread(database, self._sync_names)
        self._file_threads = ThreadPoolExecutor(_FILE_THREADS, thread_name_prefix="store-file")
        self._read_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store-read")

    @classmethod
    def open(cls, folder: Path, *, recover: bool = False) -> JobStore:
        """Locks and opens a data directory. Raises ``StoreError`` with what to do about it.

        ``recover`` moves a damaged database aside, under a name that says when, and begins with an empty one.
        """
        try:
            lock_fd = lock(folder)
            try:
                return cls(folder, lock_fd, open_database(folder, recover))
            except BaseException:
                os.close(lock_fd)
                raise
        except OSError as error:
            raise StoreError(f"the data directory {str(folder)!r} cannot be used: {error.strerror}") from None

    def close(self) -> None:
        """Waits for what is being written, then releases the data directory."""
        self._file_threads.shutdown()
        self._write_thread.close()
        self._read_thread.shutdown()
        self._reader.close()
        self._database.close()
        os.close(self._lock_fd)

    # --- changes ----------------------------------------------------------------------------------------------------

    async def add(
        self, job: Job, idempotency: IdempotencyKey | None = None, files: Mapping[str, bytes] | None = None
    ) -> str:
        """Stores a new job; its id, or that of the earlier job with the same key. Raises ``IdempotencyMismatch``."""
        if files:
            await self._in_file_thread(self._write_sources, files)
        return await self._change(self._add(job, idempotency, files or {}))

    def _write_sources(self, files: Mapping[str, bytes]) -> None:
        try:
            for name, data in files.items():
                self.sources.write(name, data)
        except BaseException:
            self._delete_sources(files)
            raise

    def _add(self, job: Job, idempotency: IdempotencyKey | None, files: Iterable[str]) -> Change[str]:
        is_stored = False
        try:
            fault("store.add")
            job_id = self._database.add(job, idempotency)
            yield
            is_stored = job_id == job.id
        finally:
            if not is_stored:
                self._delete_sources(files)
        fault("store.added")
        return job_id

    def _delete_sources(self, names: Iterable[str]) -> None:
        for name in names:
            self.sources.delete(name)

    async def claim(self, job: Job) -> None:
        """The job's next attempt begins."""
        started_s = time.time()
        if not await self._change(_only(self._database.claim, job.id, job.attempt + 1, started_s)):
            raise StorageUnavailable(f"{job.id} is not waiting in the database")
        job.move_to(JobStatus.RUNNING)
        job.attempt += 1
        job.step, job.previews = 0, []
        job.started_s = started_s

    async def requeue(self, job: Job, crashes: int) -> bool:
        """The attempt is over without an outcome; the job waits again, unless another attempt has begun."""
        if not await self._change(_only(self._database.requeue, job.id, job.attempt, crashes)):
            return False
        job.move_to(JobStatus.QUEUED)
        job.crashes, job.started_s, job.step = crashes, None, 0
        return True

    async def finish(self, job: Job, status: JobStatus, outcome: Succeeded | JobError) -> bool:
        """Writes pictures, then the end of the job. False if the attempt was void; its files are gone then."""
        finished_s = time.time()
        webhook, source = job.request.webhook, job.params.source
        tells_webhook = webhook is not None and COMPLETED in webhook.events
        names = source.files if source else ()
        # As the job stands now: when the thread comes to it, another attempt may have begun.
        before = job.attempt, job.status
        kept: JobOutcome
        if isinstance(outcome, JobError):
            kept = outcome
        else:
            kept = await self._in_file_thread(self.results.keep, job.id, job.attempt, outcome)
        finishing = self._finish(job.id, *before, status, finished_s, kept, names, tells_webhook=tells_webhook)
        if not await self._change(finishing):
            return False
        job.move_to(status)
        job.outcome, job.finished_s = kept, finished_s
        return True

    def _finish(
        self,
        job_id: str,
        attempt: int,
        before: JobStatus,
        status: JobStatus,
        finished_s: float,
        kept: JobOutcome,
        sources: tuple[str, ...],
        *,
        tells_webhook: bool,
    ) -> Change[bool]:
        fault("store.finish")
        is_current = self._database.finish(
            job_id, attempt, before, status, finished_s, kept, tells_webhook=tells_webhook
        )
        yield
        if not is_current:
            self.results.drop(kept)
            return False
        self._delete_sources(sources)
        fault("store.finished")
        return True

    async def webhook_done(self, job: Job) -> None:
        """The last message about this job has arrived, or never will."""
        await self._change(_only(self._database.webhook_done, job.id))

    async def webhook_failed(self, job: Job, tries: int, due_s: float) -> None:
        """It is sent again at that time."""
        await self._change(_only(self._database.webhook_failed, job.id, tries, due_s))

    async def forget(self, job: Job) -> None:
        """Removes a finished job and its pictures."""
        await self._write(self._forget, [job])

    async def prune(self, ttl_s: float, limit_bytes: int) -> int:
        """Forgets finished jobs that are too old, then the oldest until the pictures fit; how many it forgot."""
        count = 0
        while forgotten := await self._write(self._prune, ttl_s, limit_bytes):
            count += forgotten
        return count

    def _prune(self, ttl_s: float, limit_bytes: int) -> int:
        """Some of them: others have their turn in between."""
        jobs = self._database.finished_before(time.time() - ttl_s, _PRUNE_BATCH) or self._surplus(limit_bytes)
        return self._forget(jobs) if jobs else 0

    def _surplus(self, limit_bytes: int) -> list[Job]:
        """The oldest jobs that are too much."""
        surplus_bytes = self._database.result_bytes() - limit_bytes
        jobs = self._database.finished_before(time.time(), _PRUNE_BATCH) if surplus_bytes > 0 else []
        for count, job in enumerate(jobs, 1):
            if isinstance(job.outcome, JobResult):
                surplus_bytes -= sum(image.size_bytes for image in job.outcome.images)
            if surplus_bytes <= 0:
                return jobs[:count]
        return jobs

    def _forget(self, jobs: list[Job]) -> int:
        self._database.delete([job.id for job in jobs])
        for job in jobs:
            self.results.drop(job.outcome)
        return len(jobs)

    async def probe(self) -> None:
        """Writes for nothing, to learn whether writing works again; ``trouble`` says so."""
        await self._write(self._probe)

    def _probe(self) -> None:
        self.results.write(_PROBE_NAME, bytes(_PROBE_BYTES))
        self.results.delete(_PROBE_NAME)
        self._database.probe()

    # --- questions --------------------------------------------------------------------------------------------------

    async def get(self, job_id: str) -> Job | None:
        """The job as it is on disk."""
        return await self._read(self._reader.get, job_id)

    async def find(self, owner: str, name: str) -> Job | None:
        """The job of this owner with this id, or whose idempotency key is ``name``."""
        return await self._read(self._reader.find, owner, name)

    async def source_files(self, job: Job) -> list[bytes]:
        """What the job's source files hold, in the order of ``SourceImage.files``."""
        source = job.params.source
        names = source.files if source else ()
        return await self._read(lambda: [self.sources.path(name).read_bytes() for name in names])

    async def page(self, owner: str, before: tuple[float, str], count: int, words: Sequence[str] = ()) -> list[Job]:
        """Jobs of one owner from before a creation time (and id), newest first, whose prompt has all these words."""
        return await self._read(self._reader.page, owner, before, count, words)

    async def due_webhooks(self, time_s: float, count: int) -> tuple[list[tuple[Job, int]], float | None]:
        """As ``JobDatabase.due_webhooks``."""
        return await self._read(self._reader.due_webhooks, time_s, count)

    async def restore(self) -> list[Job]:
        """What a server before this one accepted and did not finish, waiting again; also sweeps what it left."""
        return await self._write(self._restore)

    def _restore(self) -> list[Job]:
        jobs = self._database.unfinished()
        for job in jobs:
            if job.status is JobStatus.RUNNING:
                self._database.requeue(job.id, job.attempt, job.crashes)
                job.move_to(JobStatus.QUEUED)
                job.started_s = None
        self.sources.keep_only({name for job in jobs if job.params.source for name in job.params.source.files})
        if strays := self.results.keep_only(self._database.result_files()):
            log.info("removed %d files of attempts that were cut off", strays)
        return jobs

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _change(self, change: Change[T]) -> T:
        """Together with whatever else waits for the disk."""
        return await self._writing(self._write_thread.together(change))

    async def _write(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """In transactions of its own."""
        return await self._writing(self._write_thread.alone(lambda: function(*args, **kwargs)))

    async def _in_file_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What it returns once the files that it writes are on disk."""
        call = functools.partial(function, *args, **kwargs)
        return await self._or_trouble(asyncio.get_running_loop().run_in_executor(self._file_threads, call))

    async def _writing(self, work: Awaitable[T]) -> T:
        done = await self._or_trouble(work)
        if self.trouble is not None:
            log.info("storage works again")
            self.trouble = None
        return done

    async def _or_trouble(self, work: Awaitable[T]) -> T:
        try:
            return await _stored(work)
        except (StorageFull, StorageUnavailable) as error:
            if self.trouble is None:
                log.error("storage: %s", error.message)
            self.trouble = error
            raise

    def _sync_names(self) -> None:
        self.sources.sync()
        self.results.sync()

    async def _read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        def call() -> T:
            return function(*args, **kwargs)

        return await _stored(asyncio.get_running_loop().run_in_executor(self._read_thread, call))


def _only(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Change[T]:
    """A change of the database and of nothing else."""
    done = function(*args, **kwargs)
    yield
    return done


async def _stored(work: Awaitable[T]) -> T:
    try:
        return await work
    except (sqlite3.Error, OSError) as error:
        raise _as_storage_error(error) from error


def _as_storage_error(error: sqlite3.Error | OSError) -> SafelightError:
    name = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_FULL" or getattr(error, "errno", None) in _FULL:
        return StorageFull("no space is left for jobs and images; what was accepted is kept", retry_after_s=10)
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        reason = "another process holds the lock of the job database"
    elif name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        reason = "the job database is damaged"
    else:
        reason = "the data directory cannot be written or read"
    return StorageUnavailable(f"{reason}; what was accepted is kept", retry_after_s=5)
