"""The jobs in SQLite, one synchronous call per change; every change is on disk when its call returns.

WAL with ``synchronous=FULL``: a commit costs about a third of a millisecond against an image's second, and loses
nothing even when the power goes. A connection is used by one thread at a time.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from safelight.errors import IdempotencyMismatch, StoreError
from safelight.jobs import Job, JobError, JobOutcome, JobRequest, JobResult, JobStatus
from safelight.server.transaction import Savepoint, Transaction

FILE_NAME = "jobs.sqlite3"

_APPLICATION_ID = 0x5AFE1167
_BUSY_TIMEOUT_S = 3.0
_ACTIVE = (JobStatus.QUEUED.value, JobStatus.RUNNING.value)

_MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY,
        status TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        crashes INTEGER NOT NULL,
        owner TEXT NOT NULL,
        created_s REAL NOT NULL,
        started_s REAL,
        finished_s REAL,
        request BLOB NOT NULL,
        result BLOB,
        error BLOB,
        result_bytes INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    CREATE INDEX jobs_by_status ON jobs (status, created_s);
    CREATE INDEX jobs_by_owner ON jobs (owner, created_s);
    CREATE TABLE idempotency_keys (
        owner TEXT NOT NULL,
        key TEXT NOT NULL,
        body_hash TEXT NOT NULL,
        job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        PRIMARY KEY (owner, key)
    ) WITHOUT ROWID;
    CREATE INDEX idempotency_keys_by_job ON idempotency_keys (job_id);
    CREATE TABLE probe (written INTEGER NOT NULL);
    INSERT INTO probe VALUES (0);
    """,
    """
    CREATE TABLE webhooks (
        job_id TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
        tries INTEGER NOT NULL,
        due_s REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX webhooks_by_time ON webhooks (due_s);
    """,
    # Jobs name their model from here on: an earlier Safelight, which would draw all of them with its one, opens no such
    # file. Jobs that name none are the default model's.
    "",
    # What is forgotten, and how much there is, without a look at every job that was ever made.
    """
    CREATE INDEX jobs_by_end ON jobs (finished_s, result_bytes) WHERE finished_s IS NOT NULL;
    """,
)
"""Each brings the schema one version further; ``user_version`` counts those that were applied."""

_COLUMNS = "id, status, attempt, crashes, created_s, started_s, finished_s, request, result, error"


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A caller's own name for a request, and a hash of everything that the request asks."""

    key: str
    body_hash: str


class JobDatabase:
    """One connection. Methods raise ``sqlite3.Error``; a change that fails leaves nothing behind."""

    def __init__(self, folder: Path) -> None:
        path = folder / FILE_NAME
        if not path.exists():  # else its closing would drop the locks of this process's other connection
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # it holds prompts
        self._connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.create_function("has_text", 2, _has_text, deterministic=True)
        self._is_together = False

    def close(self) -> None:
        """Closes the connection; the last one folds the write-ahead log into the file."""
        self._connection.close()

    def migrate(self) -> None:
        """Brings the schema up to date in one transaction. Raises ``StoreError`` for a file that is not ours."""
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        (application_id,) = self._connection.execute("PRAGMA application_id").fetchone()
        if version > len(_MIGRATIONS) or application_id not in (0, _APPLICATION_ID):
            raise StoreError(
                f"{FILE_NAME} is of schema version {version}, this Safelight knows up to {len(_MIGRATIONS)}: "
                "use the newer Safelight that wrote it, or another --data-dir"
            )
        (damage,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if damage != "ok":
            raise sqlite3.DatabaseError(" ".join(damage.split()))
        if version < len(_MIGRATIONS):
            steps = "".join(_MIGRATIONS[version:])
            self._connection.executescript(
                f"BEGIN IMMEDIATE; {steps} PRAGMA application_id={_APPLICATION_ID}; "
                f"PRAGMA user_version={len(_MIGRATIONS)}; COMMIT;"
            )

    # --- changes ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Changes inside reach the disk in one transaction; one that fails leaves the others alone.

        Raises ``sqlite3.Error`` if nothing of them is on disk.
        """
        with Transaction(self._connection):
            self._is_together = True
            try:
                yield
            finally:
                self._is_together = False

    def add(self, job: Job, idempotency: IdempotencyKey | None = None) -> str:
        """Stores a new job; its id, or that of the job that the same owner's key already belongs to.

        Raises ``IdempotencyMismatch`` if the key was used for another body.
        """
        with self._transaction():
            if idempotency is not None:
                found = self._connection.execute(
                    "SELECT body_hash, job_id FROM idempotency_keys WHERE owner = ? AND key = ?",
                    (job.request.owner, idempotency.key),
                ).fetchone()
                if found is not None:
                    if found[0] != idempotency.body_hash:
                        raise IdempotencyMismatch("this Idempotency-Key was used before with another body")
                    return str(found[1])
            self._connection.execute(
                "INSERT INTO jobs (id, status, attempt, crashes, owner, created_s, request) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    job.id,
                    job.status.value,
                    job.attempt,
                    job.crashes,
                    job.request.owner,
                    job.created_s,
                    _encode(job.request),
                ),
            )
            if idempotency is not None:
                self._connection.execute(
                    "INSERT INTO idempotency_keys VALUES (?, ?, ?, ?)",
                    (job.request.owner, idempotency.key, idempotency.body_hash, job.id),
                )
        return job.id

    def claim(self, job_id: str, attempt: int, started_s: float) -> bool:
        """queued -> running under a new attempt number; whether the job was there to be claimed."""
        return self._change(
            "UPDATE jobs SET status = 'running', attempt = ?, started_s = ? WHERE id = ? AND status = 'queued'",
            (attempt, started_s, job_id),
        )

    def requeue(self, job_id: str, attempt: int, crashes: int) -> bool:
        """running -> queued, if ``attempt`` is still the current one."""
        return self._change(
            "UPDATE jobs SET status = 'queued', crashes = ?, started_s = NULL "
            "WHERE id = ? AND attempt = ? AND status = 'running'",
            (crashes, job_id, attempt),
        )

    def finish(
        self,
        job_id: str,
        attempt: int,
        before: JobStatus,
        status: JobStatus,
        finished_s: float,
        outcome: JobOutcome,
        *,
        tells_webhook: bool = False,
    ) -> bool:
        """The end of a job. False unless ``attempt`` is the current one and its status ``before``: it is void then."""
        result = _encode(outcome) if isinstance(outcome, JobResult) else None
        error = _encode(outcome) if isinstance(outcome, JobError) else None
        size = sum(image.size_bytes for image in outcome.images) if isinstance(outcome, JobResult) else 0
        with self._transaction():
            changed = self._connection.execute(
                "UPDATE jobs SET status = ?, finished_s = ?, result = ?, error = ?, result_bytes = ? "
                "WHERE id = ? AND attempt = ? AND status = ?",
                (status.value, finished_s, result, error, size, job_id, attempt, before.value),
            )
            if changed.rowcount == 1 and tells_webhook:
                self._connection.execute("INSERT INTO webhooks VALUES (?, 0, ?)", (job_id, finished_s))
            return changed.rowcount == 1

    def webhook_done(self, job_id: str) -> None:
        """The last message about this job has arrived, or never will."""
        self._change("DELETE FROM webhooks WHERE job_id = ?", (job_id,))

    def webhook_failed(self, job_id: str, tries: int, due_s: float) -> None:
        """It is sent again at that time."""
        self._change("UPDATE webhooks SET tries = ?, due_s = ? WHERE job_id = ?", (tries, due_s, job_id))

    def delete(self, job_ids: Sequence[str]) -> None:
        """Forgets finished jobs and their idempotency keys."""
        with self._transaction():
            self._connection.executemany("DELETE FROM jobs WHERE id = ?", [(job_id,) for job_id in job_ids])

    def probe(self) -> None:
        """A change without meaning: raises what keeps the others from succeeding."""
        self._change("UPDATE probe SET written = written + 1", ())

    # --- questions --------------------------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job | None:
        """The job, or ``None``."""
        row = self._connection.execute(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone()  # noqa: S608
        return row and _job(row)

    def find(self, owner: str, name: str) -> Job | None:
        """The job of this owner with this id, or whose idempotency key is ``name``."""
        row = self._connection.execute(
            f"SELECT {_COLUMNS} FROM jobs WHERE owner = ? AND id IN "  # noqa: S608
            "(?, (SELECT job_id FROM idempotency_keys WHERE owner = ? AND key = ?))",
            (owner, name, owner, name),
        ).fetchone()
        return row and _job(row)

    def page(self, owner: str, before: tuple[float, str], count: int, words: Sequence[str] = ()) -> list[Job]:
        """Jobs of one owner from before a creation time (and id), newest first, whose prompt has all these words."""
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM jobs WHERE owner = ? AND (created_s, id) < (?, ?) "  # noqa: S608
            + "AND has_text(json_extract(CAST(request AS TEXT), '$.params.prompt'), ?) " * len(words)
            + "ORDER BY created_s DESC, id DESC LIMIT ?",
            (owner, *before, *words, count),
        )
        return [_job(row) for row in rows]

    def unfinished(self) -> list[Job]:
        """Queued and running jobs, oldest first."""
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM jobs WHERE status IN (?, ?) ORDER BY created_s",  # noqa: S608
            _ACTIVE,
        )
        return [_job(row) for row in rows]

    def due_webhooks(self, time_s: float, count: int) -> tuple[list[tuple[Job, int]], float | None]:
        """Jobs whose webhook is due, with the tries so far; and when the next one will be, if one waits."""
        rows = self._connection.execute(
            f"SELECT {_COLUMNS}, tries FROM jobs JOIN webhooks ON id = job_id "  # noqa: S608
            "WHERE due_s <= ? ORDER BY due_s LIMIT ?",
            (time_s, count),
        ).fetchall()
        (next_s,) = self._connection.execute("SELECT MIN(due_s) FROM webhooks WHERE due_s > ?", (time_s,)).fetchone()
        return [(_job(row[:-1]), int(row[-1])) for row in rows], next_s

    def finished_before(self, time_s: float, count: int) -> list[Job]:
        """Finished jobs that ended before a time, oldest first."""
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM jobs WHERE finished_s < ? ORDER BY finished_s LIMIT ?",  # noqa: S608
            (time_s, count),
        )
        return [_job(row) for row in rows]

    def result_files(self) -> set[str]:
        """Names of all result files."""
        rows = self._connection.execute(
            "SELECT json_extract(image.value, '$.file') "
            "FROM jobs, json_each(CAST(jobs.result AS TEXT), '$.images') AS image WHERE jobs.result IS NOT NULL"
        )
        return {name for (name,) in rows}

    def result_bytes(self) -> int:
        """Bytes of all result files."""
        (total,) = self._connection.execute(
            "SELECT COALESCE(SUM(result_bytes), 0) FROM jobs WHERE finished_s IS NOT NULL"
        ).fetchone()
        return int(total)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _change(self, statement: str, values: Sequence[object]) -> bool:
        with self._transaction():
            return self._connection.execute(statement, values).rowcount == 1

    def _transaction(self) -> Transaction:
        return Savepoint(self._connection) if self._is_together else Transaction(self._connection)


def _has_text(text: str, part: str) -> bool:
    """SQLite's own LIKE knows upper and lower case of English letters only."""
    return part.casefold() in text.casefold()


def _encode(value: msgspec.Struct) -> bytes:
    return msgspec.json.encode(value)


def _job(row: tuple[Any, ...]) -> Job:
    job_id, status, attempt, crashes, created_s, started_s, finished_s, request, result, error = row
    outcome: JobOutcome | None = None
    if result is not None:
        outcome = msgspec.json.decode(result, type=JobResult)
    elif error is not None:
        outcome = msgspec.json.decode(error, type=JobError)
    return Job(
        id=str(job_id),
        request=msgspec.json.decode(request, type=JobRequest),
        created_s=created_s,
        status=JobStatus(str(status)),
        attempt=attempt,
        crashes=crashes,
        started_s=started_s,
        finished_s=finished_s,
        outcome=outcome,
    )
