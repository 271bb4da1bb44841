"""kill -9 of the server: R06, R07, R08, R15, R47 of the reliability map."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import httpx2 as httpx
import psutil
import pytest

from safelight.config import STUB_MODEL
from tests.chaos.chaos_server import LivenessProbe, at_once, left_processes
from tests.chaos.conftest import Start
from tests.server_process import gone


@pytest.mark.parametrize(
    ("point", "is_accepted"),
    [
        ("store.add@3", False),  # before it is on disk: the client has no answer
        ("store.added@3", True),  # on disk, but the answer never left
        ("results.write@2", True),
        ("results.sync@2", True),
        ("results.rename@2", True),
        ("store.finish@2", True),  # pictures written, the end is not
        ("store.finished@2", True),
    ],
)
def test_a_server_killed_at_any_point_goes_on_where_it_was(point: str, is_accepted: bool, start: Start) -> None:
    """R06: what was answered is done after the restart, what was not is there whole or not at all."""
    server = start("--faults", f"{point}=kill", step_s=0.02)
    answered = []
    for number in range(5):
        try:
            answered.append(server.submit(f"job-{number}", seed=number)["id"])
        except httpx.HTTPError:
            break
    server.process.wait(10)
    assert left_processes(server.mark) == []
    again = start()
    for number, name in enumerate(answered):
        assert again.wait_for(name)["status"] == "succeeded"
        assert again.picture(name).startswith(b"\x89PNG"), number
    if point.startswith("store.add"):
        assert len(answered) == 2
        assert again.get("/v1/predictions/job-2").status_code == (200 if is_accepted else 404)
        retried = again.submit("job-2", seed=2)
        assert again.wait_for(retried["id"])["status"] == "succeeded"
    assert len(again.get("/v1/predictions").json()["results"]) == len(answered) + point.startswith("store.add")


@pytest.mark.timed
def test_a_running_job_goes_on_after_a_restart_with_the_same_picture(start: Start) -> None:
    """R06, R07: no process is left to disturb the next server, and recovery takes two seconds at most."""
    server = start(step_s=0.05)
    names = [server.submit(steps=10, seed=3)["id"] for _ in range(3)]
    server.wait_for_step(names[0], 3)
    workers = server.worker_pids()
    server.kill()
    killed_s = time.monotonic()
    assert gone(workers)
    again = server.restart()
    again.wait_until_ready()
    assert time.monotonic() - killed_s < 2 + again.status()["workers"][0]["seconds"]
    ended = [again.wait_for(name) for name in names]
    assert [(shown["status"], shown["attempt"]) for shown in ended] == [("succeeded", n) for n in (2, 1, 1)]
    assert len({again.picture(name) for name in names}) == 1
    assert again.metric("requests_accepted_total") == 3
    assert again.is_balanced()
    again.end()


def test_what_was_finished_is_still_there_after_a_restart(start: Start) -> None:
    server = start()
    name = server.submit(num_outputs=2)["id"]
    before = server.wait_for(name)
    pictures = [server.picture(name, index) for index in (0, 1)]
    server.kill()
    again = server.restart()
    shown = again.prediction(name)
    assert shown == before | {"output": shown["output"], "urls": shown["urls"]}
    assert [again.picture(name, index) for index in (0, 1)] == pictures
    again.end()


def test_an_idempotency_key_holds_across_a_kill(start: Start) -> None:
    """R47: a hundred at once are one job, before and after."""
    server = start(step_s=0.05)
    names = {shown["id"] for shown in at_once(100, lambda _: server.submit("once", steps=100))}
    assert names == {"once"}
    assert server.metric("requests_accepted_total") == 1
    server.kill()
    again = server.restart()
    again.wait_until_ready()
    assert again.submit("once", steps=100)["id"] == "once"
    assert again.try_submit("once", steps=11).status_code == 422
    assert again.submit("once", steps=11, key="another")["id"] == "once"
    assert again.wait_for("once")["progress"]["total"] == 100
    assert again.metric("requests_accepted_total") == 2
    again.end()


@pytest.mark.timed
def test_a_second_server_on_the_same_directory_is_refused_at_once(start: Start) -> None:
    """R15"""
    server = start()
    started_s = time.monotonic()
    command = [sys.executable, "-m", "safelight", "serve", "--model", STUB_MODEL, "--port", "0"]
    done = subprocess.run([*command, "--data-dir", str(server.folder)], capture_output=True, text=True, timeout=20)
    assert time.monotonic() - started_s < 4
    assert done.returncode == 1
    assert f"is used by another server (pid {server.process.pid})" in done.stderr
    assert done.stderr.count("\n") == 1
    assert server.wait_for(server.submit()["id"])["status"] == "succeeded"


@pytest.mark.slow
def test_sixty_deaths_of_the_worker_leave_nothing_behind(start: Start) -> None:
    """R52, R08: no zombie, no file, and the last replacement is as quick as the first. Jobs in between: no back-off."""
    server = start(step_s=0.001, STUB_LOAD_S="0.001")
    name = server.submit(steps=1)["id"]
    server.wait_for(name)
    files = server.open_files()
    times_s = []
    with LivenessProbe(server.url) as probe:
        for number in range(60):
            pid = server.worker_pid()
            os.kill(pid, signal.SIGKILL)
            killed_s = time.monotonic()
            shown = server.wait_for(server.submit(steps=1, seed=number)["id"])
            times_s.append(time.monotonic() - killed_s)
            assert shown["status"] == "succeeded"
    probe.assert_calm()
    assert psutil.Process(server.process.pid).children()[0].status() != psutil.STATUS_ZOMBIE
    assert len(server.worker_pids()) == 1
    assert abs(server.open_files() - files) <= 2
    first, last = sorted(times_s[:20]), sorted(times_s[-20:])
    assert last[10] <= first[10] * 1.5
