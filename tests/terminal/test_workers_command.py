"""``safelight workers`` against a real server of two: the list, restarts that it waits for, and what it cannot do."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.chaos.chaos_server import ChaosServer
from tests.terminal.terminal_process import ROOT, SAFELIGHT


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosServer]:
    with ChaosServer(tmp_path_factory.mktemp("data"), "--device", "cpu", "--workers", "2") as server:
        server.poll(lambda: [worker["state"] for worker in server.status()["workers"]] == ["ready", "ready"])
        yield server
        assert server.stop() == 0


def workers(server: ChaosServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*SAFELIGHT, "workers", *arguments, "--url", server.url]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_list_says_what_each_worker_is_and_does(server: ChaosServer) -> None:
    run = workers(server)
    assert run.returncode == 0, run.stderr
    header, *rows = [line.split() for line in run.stdout.splitlines()]
    assert header == ["ID", "DEVICE", "STATE", "MODEL", "JOBS", "TIME", "RESTARTS", "ERROR"]
    assert rows == [[str(index), f"cpu:{index}", "ready", "safelight/stub", "0", "0"] for index in range(2)]


def test_a_restart_is_told_of_worker_by_worker(server: ChaosServer) -> None:
    before = set(server.worker_pids())
    run = workers(server, "restart")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines() == ["worker 0 has a new process", "worker 1 has a new process"]
    assert not before & set(server.worker_pids())
    second = workers(server, "restart", "1")
    assert second.stdout.splitlines() == ["worker 1 has a new process"]


def test_a_restart_need_not_be_waited_for(server: ChaosServer) -> None:
    assert workers(server, "restart", "0", "--no-wait").stdout == ""
    server.poll(lambda: server.status()["rollout"]["state"] == "done")


def test_what_is_not_there_is_a_sentence(server: ChaosServer) -> None:
    run = workers(server, "restart", "7")
    assert (run.returncode, run.stderr) == (1, "safelight: there is no worker '7': they are called 0 to 1\n")
    run = workers(server, "restart", "--model", "acme/none")
    assert run.returncode == 1
    assert "acme/none" in run.stderr
