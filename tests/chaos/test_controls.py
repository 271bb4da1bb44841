"""Controls that must fail: each detector of this folder is shown what it exists to find."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time

import pytest

from tests.chaos.campaign import Campaign, duplicates, expected_picture
from tests.chaos.chaos_server import MARK, LivenessProbe, damage, left_files, left_processes
from tests.chaos.conftest import Start


def test_a_process_left_over_is_found() -> None:
    child = subprocess.Popen(["sleep", "60"], env=os.environ | {MARK: "control"}, start_new_session=True)
    try:
        end_s = time.monotonic() + 2
        while not left_processes("control", 0.1):
            assert time.monotonic() < end_s
        assert left_processes("another", 0.1) == []
    finally:
        child.kill()
        child.wait()


def test_a_traceback_is_found(start: Start) -> None:
    server = start("--faults", "engine.step@1=error")
    assert server.wait_for(server.submit()["id"])["status"] == "failed"
    with pytest.raises(AssertionError):
        server.end()


def test_a_file_left_over_a_missing_one_and_a_broken_one_are_found(start: Start) -> None:
    server = start()
    for number in range(3):
        server.wait_for(server.submit(seed=number)["id"])
    server.end()
    results = server.folder / "results"
    first, second, third = sorted(results.iterdir())
    third.write_bytes(third.read_bytes()[:-20])
    second.unlink()
    (results / "x.png.tmp").touch()
    (results / "of-nobody.png").touch()
    assert sorted(left_files(server.folder)) == ["of-nobody.png", "x.png.tmp"]
    assert len(damage(server.folder)) == 2
    first.rename(results / first.name.replace("-1-0", "-2-0"))
    assert len(damage(server.folder)) == 3


def test_a_lost_a_failed_a_doubled_and_a_wrong_job_are_found(start: Start) -> None:
    server = start()
    for number in range(4):
        server.wait_for(server.submit(f"job-{number}", seed=number)["id"])
    assert server.picture("job-1") == expected_picture(1)
    server.end()
    connection = sqlite3.connect(server.folder / "jobs.sqlite3")
    rows = dict(connection.execute("SELECT key, job_id FROM idempotency_keys").fetchall())
    assert set(rows) == {f"job-{number}" for number in range(4)}
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("DELETE FROM jobs WHERE id = ?", (rows["job-0"],))
    connection.execute("UPDATE jobs SET status = 'failed', result = NULL WHERE id = ?", (rows["job-1"],))
    connection.commit()
    connection.close()
    wrong = server.folder / "results" / f"{rows['job-2']}-1-0.png"
    wrong.write_bytes(expected_picture(99))
    (server.folder / "results" / f"{rows['job-3']}-2-0.png").touch()
    assert duplicates(server.folder) == [rows["job-3"]]
    again = start()
    campaign = Campaign(again, 0, 4)
    campaign.accepted.update({f"job-{number}": number for number in range(4)})
    report = campaign.check()
    assert report.lost == ["job-0"]
    assert [name.partition(":")[0] for name in report.failed] == ["job-1"]
    assert report.wrong_pictures == ["job-2"]
    assert not report.is_clean


@pytest.mark.timed
def test_a_loop_that_stands_still_is_found(start: Start) -> None:
    server = start()
    with LivenessProbe(server.url) as probe:
        time.sleep(0.2)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(0.4)
        server.process.send_signal(signal.SIGCONT)
        time.sleep(0.2)
    with pytest.raises(AssertionError):
        probe.assert_calm()


def test_a_server_that_is_down_is_found(start: Start) -> None:
    server = start()
    with LivenessProbe(server.url) as probe:
        time.sleep(0.1)
        server.kill()
        time.sleep(0.1)
    assert probe.errors


def test_files_that_stay_open_are_found(start: Start) -> None:
    from tests.chaos.test_drain import connected

    server = start()
    files = server.open_files()
    with connected(server, 12, b"GET"):  # two more: the last question's connection may just be closing
        server.poll(lambda: server.open_files() >= files + 10)
