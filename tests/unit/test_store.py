"""What outlives the process: every move on disk, pictures whole or absent, damage and strangers refused."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from safelight.errors import IdempotencyMismatch, SafelightError, StorageFull, StorageUnavailable, StoreError
from safelight.jobs import Job, JobError, JobResult, JobStatus
from safelight.params import ImageFormat, SourceImage
from safelight.protocol import EncodedImage, Succeeded
from safelight.server import database as database_module
from safelight.server.database import FILE_NAME, IdempotencyKey, JobDatabase
from safelight.server.janitor import tend
from safelight.server.store import JobStore
from tests.unit.running_front import asked, job

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[JobStore]:
    opened = JobStore.open(tmp_path)
    yield opened
    opened.close()


def _done(waited: Job, count: int = 1, data: bytes = b"picture") -> Succeeded:
    images = [EncodedImage(data, ImageFormat.PNG, seed, 64, 64) for seed in range(count)]
    return Succeeded(waited.id, waited.attempt, images, ["a warning"], 7, {"generate": 0.5})


async def _finished(store: JobStore, name: str, data: bytes = b"picture", finished_s: float | None = None) -> Job:
    done = job(name)
    done.created_s = time.time()
    await store.add(done, None)
    await store.claim(done)
    assert await store.finish(done, JobStatus.SUCCEEDED, _done(done, data=data))
    if finished_s is not None:
        store._database._change("UPDATE jobs SET finished_s = ? WHERE id = ?", (finished_s, name))
    return done


def _files(store: JobStore) -> set[str]:
    return {path.name for path in (store._folder / "results").iterdir()}


# --- moves --------------------------------------------------------------------------------------------------------


async def test_a_job_comes_back_as_it_was_given(store: JobStore) -> None:
    given = job(num_images=2, negative_prompt="Grüße 🖼", true_cfg_scale=2.0, owner="me", priority=3)
    given.created_s = 123.5
    assert await store.add(given, None) == "job_1"
    stored = await store.get("job_1")
    assert stored is not None
    assert (stored.request, stored.created_s, stored.status, stored.attempt) == (given.request, 123.5, "queued", 0)
    assert await store.get("job_2") is None


async def test_a_job_through_its_life(store: JobStore) -> None:
    living = job()
    await store.add(living, None)
    await store.claim(living)
    assert (living.status, living.attempt) == (JobStatus.RUNNING, 1)
    assert await store.requeue(living, 1)
    assert (living.status, living.crashes) == (JobStatus.QUEUED, 1)
    await store.claim(living)
    assert await store.finish(living, JobStatus.SUCCEEDED, _done(living, 2))
    stored = await store.get(living.id)
    assert stored is not None
    assert (stored.status, stored.attempt, stored.crashes, stored.result) == ("succeeded", 2, 1, living.result)
    assert [image.file for image in stored.result.images] == ["job_1-2-0.png", "job_1-2-1.png"]
    path = store.results.path("job_1-2-0.png")
    assert path.read_bytes() == b"picture"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_an_end_is_of_the_attempt_that_it_was_given_for(store: JobStore) -> None:
    ending = job()
    await store.add(ending, None)
    await store.claim(ending)
    done, may_go_on = _done(ending), threading.Event()
    held = asyncio.create_task(store._write(may_go_on.wait))
    finishing = asyncio.create_task(store.finish(ending, JobStatus.SUCCEEDED, done))
    await asyncio.sleep(0.01)
    ending.attempt += 1  # while the end waits for the disk
    may_go_on.set()
    assert await finishing
    await held
    stored = await store.get("job_1")
    assert stored is not None and (stored.status, stored.attempt) == (JobStatus.SUCCEEDED, 1)


async def test_only_the_current_attempt_may_end_a_job(store: JobStore) -> None:
    fenced = job()
    await store.add(fenced, None)
    await store.claim(fenced)
    late = Job(fenced.id, fenced.request, status=JobStatus.RUNNING, attempt=1)
    await store.requeue(fenced, 1)
    await store.claim(fenced)
    assert not await store.finish(late, JobStatus.SUCCEEDED, _done(late))
    assert not await store.requeue(late, 5)
    assert _files(store) == set()
    assert await store.finish(fenced, JobStatus.SUCCEEDED, _done(fenced))
    assert not await store.finish(
        Job(fenced.id, fenced.request, status=JobStatus.RUNNING, attempt=2), JobStatus.FAILED, JobError("a", "b")
    )
    stored = await store.get(fenced.id)
    assert stored is not None and (stored.status, stored.attempt) == ("succeeded", 2)


async def test_a_job_that_does_not_wait_cannot_be_claimed(store: JobStore) -> None:
    with pytest.raises(StorageUnavailable):
        await store.claim(job("job_9"))


async def test_a_caller_that_is_cancelled_does_not_undo_its_change(store: JobStore) -> None:
    adding = asyncio.create_task(store.add(job(), None))
    await asyncio.sleep(0)
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    await store.probe()  # the change is before this one
    assert await store.find("", "job_1") is not None


# --- names and pages ----------------------------------------------------------------------------------------------


async def test_keys_belong_to_their_owner(store: JobStore) -> None:
    key = IdempotencyKey("it's \0 a 'key'; DROP TABLE jobs", "hash")
    mine, yours = job("job_1", owner="me"), job("job_2", owner="you")
    assert await store.add(mine, key) == "job_1"
    assert await store.add(yours, IdempotencyKey(key.key, "other")) == "job_2"
    assert await store.add(job("job_3", owner="me"), key) == "job_1"
    with pytest.raises(IdempotencyMismatch):
        await store.add(job("job_4", owner="me"), IdempotencyKey(key.key, "other"))
    found = await store.find("me", key.key)
    assert found is not None and found.id == "job_1"
    assert await store.find("you", "job_1") is None
    assert await store.get("job_3") is None


async def test_pages_go_from_new_to_old_without_gaps_even_at_equal_times(store: JobStore) -> None:
    for number in range(25):
        one = job(f"job_{number:02}", owner="me")
        one.created_s = 100.0 + number // 10
        await store.add(one, None)
    seen: list[str] = []
    before = (float("inf"), "")
    while page := await store.page("me", before, 7):
        seen += [one.id for one in page]
        before = (page[-1].created_s, page[-1].id)
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == 25


# --- retention ----------------------------------------------------------------------------------------------------


async def test_what_is_too_old_is_forgotten_with_its_pictures_and_keys(store: JobStore) -> None:
    await _finished(store, "old", finished_s=time.time() - 100)
    await _finished(store, "new")
    waiting = job("waiting")
    await store.add(waiting, IdempotencyKey("k", "h"))
    assert await store.prune(50, 10**9) == 1
    assert await store.get("old") is None
    assert _files(store) == {"new-1-0.png"}
    assert await store.get("waiting") is not None


async def test_the_oldest_go_first_when_there_is_too_much(store: JobStore) -> None:
    for number in range(5):
        await _finished(store, f"job_{number}", bytes(100), finished_s=1000.0 + number)
    assert await store.prune(10**10, 250) == 3
    assert _files(store) == {"job_3-1-0.png", "job_4-1-0.png"}


# --- restart ------------------------------------------------------------------------------------------------------


async def test_a_restart_takes_up_what_was_accepted_and_sweeps_what_was_half_done(tmp_path: Path) -> None:
    with contextlib.closing(JobStore.open(tmp_path)) as store:
        running, waiting = job("running"), job("waiting")
        running.created_s, waiting.created_s = 1.0, 2.0
        for one in (running, waiting):
            await store.add(one, None)
        await store.claim(running)
        await _finished(store, "done")
        (tmp_path / "results" / "running-1-0.png").write_bytes(b"never committed")
        (tmp_path / "results" / "running-1-0.png.tmp").write_bytes(b"half")
    with contextlib.closing(JobStore.open(tmp_path)) as store:
        jobs = await store.restore()
        assert [(one.id, one.status, one.attempt) for one in jobs] == [
            ("running", "queued", 1),
            ("waiting", "queued", 0),
        ]
        assert _files(store) == {"done-1-0.png"}
        await store.claim(jobs[0])
        assert jobs[0].attempt == 2


async def test_a_second_server_on_the_same_directory_is_refused_with_the_first_ones_pid(tmp_path: Path) -> None:
    with (
        contextlib.closing(JobStore.open(tmp_path)),
        pytest.raises(StoreError, match=r"used by another server \(pid \d+\)"),
    ):
        JobStore.open(tmp_path)
    JobStore.open(tmp_path).close()


# --- schema and damage --------------------------------------------------------------------------------------------


async def test_a_database_of_the_future_or_of_somebody_else_is_refused_unchanged(tmp_path: Path) -> None:
    JobStore.open(tmp_path).close()
    for pragma in ("user_version=99", "application_id=7"):
        before = (tmp_path / FILE_NAME).read_bytes()
        connection = sqlite3.connect(tmp_path / FILE_NAME)
        connection.execute(f"PRAGMA {pragma}")
        connection.close()
        with pytest.raises(StoreError, match="use the newer Safelight that wrote it, or another --data-dir"):
            JobStore.open(tmp_path)
        (tmp_path / FILE_NAME).write_bytes(before)
    JobStore.open(tmp_path).close()


async def test_an_older_schema_is_migrated_in_one_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(JobStore.open(tmp_path)) as store:
        await store.add(job(), None)
    steps = (*database_module._MIGRATIONS, "ALTER TABLE jobs ADD COLUMN note TEXT;")
    monkeypatch.setattr(database_module, "_MIGRATIONS", (*steps[:-1], steps[-1] + "nonsense;"))
    with pytest.raises(StoreError, match="cannot be opened"):
        JobStore.open(tmp_path)
    monkeypatch.setattr(database_module, "_MIGRATIONS", steps)
    with contextlib.closing(JobStore.open(tmp_path)) as store:
        assert await store.get("job_1") is not None
        assert store._database._connection.execute("SELECT note FROM jobs").fetchall() == [(None,)]


async def test_jobs_of_a_safelight_that_served_one_model_only_are_the_default_models(tmp_path: Path) -> None:
    """Schema version 2, whose requests name no model."""
    request = json.loads(msgspec.json.encode(asked(prompt="an old one")))
    assert request.pop("model") == ""
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as old:
        old.executescript("".join(database_module._MIGRATIONS[:2]))
        old.execute("PRAGMA user_version=2")
        old.execute(
            "INSERT INTO jobs (id, status, attempt, crashes, owner, created_s, request) "
            "VALUES ('job_1', 'queued', 0, 0, '', 1.0, ?)",
            (json.dumps(request).encode(),),
        )
        old.commit()
    with contextlib.closing(JobStore.open(tmp_path)) as store:
        (restored,) = await store.restore()
        assert (restored.request.model, restored.params.prompt) == ("", "an old one")
        await store.add(job("job_2", model="b"), None)
        assert {found.id: found.request.model for found in await store.restore()} == {"job_1": "", "job_2": "b"}
        (version,) = store._database._connection.execute("PRAGMA user_version").fetchone()
        assert version == len(database_module._MIGRATIONS) > 2


@pytest.mark.parametrize("damage", ["garbage", "flipped page", "truncated"])
async def test_a_damaged_database_is_refused_and_kept_or_moved_aside_on_request(damage: str, tmp_path: Path) -> None:
    with contextlib.closing(JobStore.open(tmp_path)) as store:
        for number in range(200):
            await store.add(job(f"job_{number}"), None)
    path = tmp_path / FILE_NAME
    content = bytearray(path.read_bytes())
    match damage:
        case "garbage":
            content[:] = b"<html>not a database</html>" * 1000
        case "flipped page":
            content[8192:12288] = bytes(byte ^ 0xFF for byte in content[8192:12288])
        case "truncated":
            del content[len(content) // 2 :]
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"is damaged .* --recover true"):
        JobStore.open(tmp_path)
    assert path.read_bytes() == content
    with contextlib.closing(JobStore.open(tmp_path, recover=True)) as store:
        assert await store.restore() == []
    (aside,) = tmp_path.glob(f"{FILE_NAME}.damaged-*")  # noqa: ASYNC240
    assert aside.read_bytes() == content


async def test_the_database_is_private(store: JobStore, tmp_path: Path) -> None:
    await store.add(job(), None)
    for path in tmp_path.glob(f"{FILE_NAME}*"):  # noqa: ASYNC240
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


async def test_another_program_that_looks_into_the_database_takes_nothing_away(store: JobStore, tmp_path: Path) -> None:
    """The last connection to close deletes the write-ahead log: SQLite must not take a visitor's for the last."""
    code = "import sys, sqlite3; print(sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM jobs').fetchone()[0])"
    look = [sys.executable, "-c", code, str(tmp_path / FILE_NAME)]
    for number in range(3):
        await store.add(job(f"job_{number}"), None)
        seen = await asyncio.to_thread(subprocess.run, look, capture_output=True, text=True, check=True)
        assert int(seen.stdout) == number + 1


def test_a_folder_that_cannot_be_used_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be used: No such file or directory"):
        JobStore.open(tmp_path / "nowhere")


# --- faults of the disk -------------------------------------------------------------------------------------------


async def test_a_full_database_refuses_and_recovers(store: JobStore) -> None:
    connection = store._database._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StorageFull, match="no space is left"):
        for number in range(100):
            await store.add(job(f"job_{number}", prompt="x" * 4000), None)
    assert isinstance(store.trouble, StorageFull)
    connection.execute("PRAGMA max_page_count=1000000")
    await store.probe()
    assert store.trouble is None


@pytest.mark.timed
async def test_a_lock_held_for_a_moment_is_not_noticed_and_one_held_for_long_is(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store._database._connection.execute("PRAGMA busy_timeout=300")
    other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    await store.add(job("job_0"), None)
    other.execute("BEGIN IMMEDIATE")
    adding = asyncio.create_task(store.add(job("job_1"), None))
    await asyncio.sleep(0.1)
    other.execute("ROLLBACK")
    assert await adding == "job_1"
    other.execute("BEGIN IMMEDIATE")
    start_s = time.monotonic()
    adding = asyncio.create_task(store.add(job("job_2"), None))
    assert await store.get("job_0") is not None  # reading goes on
    assert time.monotonic() - start_s < 0.2
    with pytest.raises(StorageUnavailable, match="another process holds the lock"):
        await adding
    other.execute("ROLLBACK")
    other.close()
    await store.probe()
    assert store.trouble is None


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, StorageFull), (errno.EROFS, StorageUnavailable)])
async def test_a_picture_that_cannot_be_written_leaves_no_file_and_no_end(
    number: int, kind: type[SafelightError], store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = job()
    await store.add(half, None)
    await store.claim(half)
    writes = store.results.write

    def write(name: str, data: bytes) -> None:
        if name.endswith("-1.png"):
            raise OSError(number, "no")
        writes(name, data)

    monkeypatch.setattr(store.results, "write", write)
    with pytest.raises(kind):
        await store.finish(half, JobStatus.SUCCEEDED, _done(half, 2))
    assert (half.status, half.outcome) == (JobStatus.RUNNING, None)
    monkeypatch.undo()
    assert await store.finish(half, JobStatus.SUCCEEDED, _done(half, 2))
    assert isinstance(half.outcome, JobResult)
    assert _files(store) == {"job_1-1-0.png", "job_1-1-1.png"}


async def test_the_janitor_prunes_and_finds_out_when_writing_works_again(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safelight.server import janitor

    monkeypatch.setattr(janitor, "_PROBE_EVERY_S", 0.01)
    await _finished(store, "old", finished_s=time.time() - 100)
    store.trouble = StorageFull("full")
    tending = asyncio.create_task(tend(store, 50, 10**9))
    async with asyncio.timeout(5):
        while store.trouble or _files(store):  # noqa: ASYNC110 (nothing is announced)
            await asyncio.sleep(0.01)
    tending.cancel()


def test_one_change_at_a_time_is_seen_by_another_connection(tmp_path: Path) -> None:
    writer = JobDatabase(tmp_path)
    writer.migrate()
    reader = JobDatabase(tmp_path)
    writer.add(job())
    assert reader.get("job_1") is not None
    for database in (writer, reader):
        assert database._connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert database._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        database.close()


# --- search and forget --------------------------------------------------------------------------------------------


async def test_a_search_finds_prompts_with_all_words_in_any_case_and_takes_signs_as_they_are(store: JobStore) -> None:
    prompts = {"job_1": "A red circle", "job_2": "ein ROTER Kreis, größer", "job_3": "100% red_star"}
    for name, prompt in prompts.items():
        await store.add(job(name, prompt=prompt, owner="me"), None)
    await store.add(job("job_4", prompt="a red circle", owner="you"), None)
    for words, found in (
        ([], ["job_3", "job_2", "job_1"]),
        (["RED"], ["job_3", "job_1"]),
        (["circle", "red"], ["job_1"]),
        (["GRÖSSER"], ["job_2"]),
        (["100%"], ["job_3"]),
        (["d_s"], ["job_3"]),
        (["%"], ["job_3"]),
        (["' OR 1"], []),
    ):
        page = await store.page("me", (float("inf"), ""), 10, words)
        assert [shown.id for shown in page] == found, words


async def test_a_forgotten_job_leaves_no_row_no_key_and_no_file(store: JobStore) -> None:
    kept, gone = await _finished(store, "job_kept"), await _finished(store, "job_gone")
    await store.forget(gone)
    assert await store.get("job_gone") is None
    assert (await store.get("job_kept")) is not None
    assert _files(store) == {image.file for image in kept.result.images}
    await store.forget(gone)  # again is no error


# --- together -----------------------------------------------------------------------------------------------------


def _commits(store: JobStore) -> list[str]:
    """Statements that end a transaction, as they come."""
    seen: list[str] = []
    store._database._connection.set_trace_callback(lambda text: seen.append(text) if text == "COMMIT" else None)
    return seen


async def test_changes_that_wait_together_share_a_commit(store: JobStore, tmp_path: Path) -> None:
    commits = _commits(store)
    jobs = [job(f"job_{number}") for number in range(50)]
    assert await asyncio.gather(*(store.add(each) for each in jobs)) == [each.id for each in jobs]
    await asyncio.gather(*(store.claim(each) for each in jobs))
    assert await asyncio.gather(*(store.finish(each, JobStatus.SUCCEEDED, _done(each)) for each in jobs)) == [True] * 50
    assert len(commits) < 75, "one for each of 150 changes"
    with contextlib.closing(JobDatabase(tmp_path)) as other:
        stored = [other.get(each.id) for each in jobs]
    assert {each and each.status for each in stored} == {JobStatus.SUCCEEDED}
    assert len(_files(store)) == 50


async def test_one_that_fails_leaves_the_others_of_its_commit_alone(store: JobStore) -> None:
    def key(body: str) -> IdempotencyKey:
        return IdempotencyKey("k", body)

    adding = [
        store.add(job("job_0"), key("a")),
        store.add(job("job_1"), key("b")),  # another body under the same key
        store.add(job("job_2"), key("a")),  # the first job again
        store.add(job("job_3")),
    ]
    first, mismatch, again, other = await asyncio.gather(*adding, return_exceptions=True)
    assert (first, again, other) == ("job_0", "job_0", "job_3")
    assert isinstance(mismatch, IdempotencyMismatch)
    assert [found and found.id for found in [await store.get(f"job_{n}") for n in range(4)]] == [
        "job_0",
        None,
        None,
        "job_3",
    ]


async def test_what_did_not_reach_the_disk_failed_for_all_and_is_undone(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = job("job_0", source=SourceImage("a.png", 0.5))
    await store.add(changed, None, {"a.png": b"a picture"})
    await store.claim(changed)

    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(store._write_thread, "_sync", fail)
    done = await asyncio.gather(
        store.finish(changed, JobStatus.SUCCEEDED, _done(changed)),
        store.add(job("job_1", source=SourceImage("b.png", 0.5)), None, {"b.png": b"another"}),
        return_exceptions=True,
    )
    assert [type(each) for each in done] == [StorageUnavailable] * 2
    assert (changed.status, await store.get("job_1")) == (JobStatus.RUNNING, None)
    sources = {path.name for path in (store._folder / "sources").iterdir()}
    assert sources == {"a.png"}, "what runs again needs its source; what was not accepted has none"
    monkeypatch.undo()
    assert await store.finish(changed, JobStatus.SUCCEEDED, _done(changed))
    assert store.trouble is None


async def test_a_transaction_that_sqlite_gave_up_is_given_up_by_all(store: JobStore) -> None:
    connection = store._database._connection

    def give_up(changed: Job, key: IdempotencyKey | None = None) -> str:
        connection.execute("ROLLBACK")  # as SQLite may do by itself when the disk is full
        raise sqlite3.OperationalError("database or disk is full")

    add, calls = store._database.add, itertools.count()
    store._database.add = lambda *given: (give_up if next(calls) == 1 else add)(*given)  # type: ignore[method-assign]
    held = asyncio.create_task(store._write_thread.alone(lambda: time.sleep(0.05)))
    await asyncio.sleep(0)  # what comes now waits together
    found = await asyncio.gather(*(store.add(job(f"job_{number}")) for number in range(3)), return_exceptions=True)
    await held
    assert [type(each) for each in found] == [StorageUnavailable] * 3
    assert store._database.unfinished() == []
    assert await store.add(job("job_9")) == "job_9"
