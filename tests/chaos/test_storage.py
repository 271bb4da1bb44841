"""Full, locked, read-only and damaged storage: R29, R31-R33 of the reliability map."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from safelight.config import STUB_MODEL
from tests.chaos.chaos_server import LivenessProbe
from tests.chaos.conftest import Start

pytestmark = pytest.mark.timed


@pytest.mark.parametrize("point", ["results.write", "results.sync", "results.rename"])
def test_a_disk_that_is_full_for_a_while_delays_results_and_loses_none(point: str, start: Start) -> None:
    """R31: no half picture, status says so, it recovers by itself."""
    hits = ";".join(f"{point}@{hit}=full" for hit in range(2, 6))
    server = start("--faults", hits)
    names = [server.submit(seed=number)["id"] for number in range(3)]
    server.poll(lambda: server.get("/readyz").status_code == 503)
    ready = server.get("/readyz").json()
    assert "no space is left" in ready["storage"]["error"]
    assert server.get("/livez").status_code == 200
    ended = [server.wait_for(name) for name in names]
    assert [(shown["status"], shown["attempt"]) for shown in ended] == [("succeeded", 1)] * 3
    server.wait_until_ready()
    assert server.metric("storage_ok") == 1


def test_new_jobs_are_refused_while_the_disk_is_full_and_taken_again_afterwards(start: Start) -> None:
    """R31"""
    server = start("--faults", "store.add@2=full;results.write@1=full;results.write@2=full")
    refused = []
    assert server.wait_for(server.submit()["id"])["status"] == "succeeded"
    answer = server.try_submit()
    refused.append(answer.status_code)
    assert answer.json()["error"]["code"] == "storage_full"
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    full_s = time.monotonic()
    server.wait_until_ready()
    assert time.monotonic() - full_s < 5
    assert server.wait_for(server.submit()["id"])["status"] == "succeeded"


@pytest.mark.slow
def test_a_really_full_disk(start: Start, tmp_path: Path) -> None:
    """R31, on a file system of 3 MB: both the pictures and the database meet its end."""
    mount = tmp_path / "small"
    mount.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", mount], capture_output=True)
    if mounted.returncode:
        pytest.skip("only a user who may mount can make a small disk")
    try:
        server = start("--data-dir", str(mount))
        server.folder = mount
        ballast = mount / "ballast"
        done = server.wait_for(server.submit()["id"])
        fd = os.open(ballast, os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match="No space"):
            while True:
                os.write(fd, bytes(4096))
        os.close(fd)
        answers = [server.try_submit(prompt="x" * 30_000) for _ in range(20)]
        assert {answer.status_code for answer in answers} <= {201, 507}
        assert answers[-1].status_code == 507
        assert server.picture(done["id"]).startswith(b"\x89PNG")
        ballast.unlink()
        server.wait_until_ready()
        for answer in answers:
            if answer.status_code == 201:
                assert server.wait_for(answer.json()["id"])["status"] == "succeeded"
        server.end()
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


@pytest.mark.slow
def test_a_lock_of_two_seconds_is_not_noticed(start: Start) -> None:
    """R32"""
    server = start()
    with _locked(server.folder) as connection, LivenessProbe(server.url) as probe:
        started_s = time.monotonic()
        unlock = subprocess.Popen(["sleep", "2"])
        assert unlock.wait() == 0
        connection.execute("ROLLBACK")
        assert server.wait_for(server.submit()["id"])["status"] == "succeeded"
        assert time.monotonic() - started_s < 4
    probe.assert_calm()


def test_a_lock_for_long_refuses_new_jobs_serves_old_ones_and_blocks_nothing(start: Start) -> None:
    """R32"""
    server = start()
    done = server.wait_for(server.submit()["id"])
    with _locked(server.folder) as connection:
        with LivenessProbe(server.url) as probe:
            answer = server.try_submit()
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")
            assert answer.headers["retry-after"]
            assert server.picture(done["id"]).startswith(b"\x89PNG")
            assert server.prediction(done["id"])["status"] == "succeeded"
            assert server.get("/readyz").status_code == 503
        probe.assert_calm()
        connection.execute("ROLLBACK")
    server.wait_until_ready()
    assert server.wait_for(server.submit()["id"])["status"] == "succeeded"


class _locked:
    """Another process' hold on the database."""

    def __init__(self, folder: Path) -> None:
        self._connection = sqlite3.connect(folder / "jobs.sqlite3", isolation_level=None)

    def __enter__(self) -> sqlite3.Connection:
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def _start_and_fail(folder: Path, *options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "safelight", "serve", "--model", STUB_MODEL, "--port", "0"]
    started_s = time.monotonic()
    done = subprocess.run([*command, "--data-dir", str(folder), *options], capture_output=True, text=True, timeout=20)
    assert time.monotonic() - started_s < 2
    return done.returncode, done.stderr


@pytest.mark.parametrize("damage", ["log is garbage", "log is gone", "database is gone"])
def test_what_sqlite_would_take_for_an_older_database_is_refused_too(damage: str, start: Start) -> None:
    """R33: after a kill -9 the last jobs are in the write-ahead log only."""
    server = start()
    server.wait_for(server.submit()["id"])
    server.kill()
    path = server.folder / "jobs.sqlite3"
    victim = path if damage.startswith("database") else Path(f"{path}-wal")
    whole = victim.read_bytes()
    if damage.endswith("gone"):
        victim.unlink()
    else:
        victim.write_bytes(os.urandom(len(whole)))
    code, said = _start_and_fail(server.folder)
    assert code == 1
    assert "is damaged" in said and said.count("\n") == 1
    victim.write_bytes(whole)
    assert len(start().get("/v1/predictions").json()["results"]) == 1


@pytest.mark.parametrize("damage", ["flipped page", "truncated"])
def test_damage_is_refused_with_a_hint_and_nothing_is_thrown_away(damage: str, start: Start) -> None:
    """R33: never silently empty."""
    server = start()
    names = [server.submit(prompt="x" * 3000)["id"] for _ in range(30)]
    for name in names:
        server.wait_for(name)
    path = server.folder / "jobs.sqlite3"
    server.end()
    whole = path.read_bytes()
    content = bytearray(whole)
    if damage == "truncated":
        del content[len(content) // 2 :]
    else:
        content[8192:12288] = bytes(byte ^ 0xFF for byte in content[8192:12288])
    path.write_bytes(content)
    code, said = _start_and_fail(server.folder)
    assert code == 1
    assert "is damaged" in said and "--recover true" in said and said.count("\n") == 1
    assert path.read_bytes() == content
    recovered = start("--recover", "true")
    assert recovered.get("/v1/predictions").json()["results"] == []
    recovered.end()
    (aside,) = server.folder.glob("jobs.sqlite3.damaged-*")
    (pictures,) = server.folder.glob("results.damaged-*")
    assert aside.read_bytes() == content
    path.write_bytes(whole)
    shutil.rmtree(server.folder / "results")
    pictures.rename(server.folder / "results")
    assert len(start().get("/v1/predictions").json()["results"]) == 30


def test_a_read_only_directory_is_one_line(start: Start, tmp_path: Path) -> None:
    """R29"""
    folder = tmp_path / "read-only"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only a user who may mount can make a read-only disk")
    try:
        code, said = _start_and_fail(folder)
        assert code in (1, 2)
        assert said.count("\n") == 1 and str(folder) in said
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_database_of_the_future_is_refused(start: Start) -> None:
    """R29"""
    server = start()
    server.submit()
    server.end()
    connection = sqlite3.connect(server.folder / "jobs.sqlite3")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    code, said = _start_and_fail(server.folder)
    assert code == 1
    assert "schema version 99" in said and said.count("\n") == 1


def test_old_results_go(start: Start) -> None:
    server = start()
    name = server.submit()["id"]
    server.wait_for(name)
    server.end()
    again = start("--result-ttl-s", "0")
    again.poll(lambda: again.get(f"/v1/predictions/{name}").status_code == 404)
    assert list((again.folder / "results").iterdir()) == []
