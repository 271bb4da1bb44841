"""Two workers on one machine: one fails, dies again and again, is slow, or is replaced; the server goes on."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chaos.chaos_server import ChaosServer
from tests.chaos.conftest import Start
from tests.plain_http import open_client

TWO = ("--device", "cpu", "--workers", "2")
SERVING = ("ready", "busy")


def states(server: ChaosServer) -> list[str]:
    return [worker["state"] for worker in server.status()["workers"]]


def all_serve(server: ChaosServer) -> bool:
    return all(state in SERVING for state in states(server))


class Watch:
    """Looks at the server all the time, from a thread of its own: how many workers serve, and what ``/readyz`` says."""

    def __init__(self, server: ChaosServer) -> None:
        self._server = server
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.serving: list[int] = []
        self.readiness: set[int] = set()

    def _look(self) -> None:
        with open_client(self._server.url) as client:
            while not self._is_over.is_set():
                self.readiness.add(client.get("/readyz").status_code)
                workers = client.get("/v1/status").json()["workers"]
                self.serving.append(sum(worker["state"] in SERVING for worker in workers))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def submissions(server: ChaosServer, steps: int = 4) -> Iterator[dict[str, Any]]:
    """Accepted jobs; ``submit`` fails for one that is refused."""
    for number in itertools.count():
        yield server.submit(f"job-{number}", steps=steps)


def assert_all_drawn(server: ChaosServer, names: list[str]) -> list[dict[str, Any]]:
    shown = [server.wait_for(name) for name in names]
    assert {one["status"] for one in shown} == {"succeeded"}
    assert server.is_balanced()
    return shown


def test_two_workers_draw_at_the_same_time_on_their_share_of_the_cores(start: Start) -> None:
    server = start(*TWO, step_s=0.05)
    server.poll(lambda: all_serve(server))
    assert [worker["device"] for worker in server.status()["workers"]] == ["cpu:0", "cpu:1"]
    for pid in server.worker_pids():
        assert int(psutil.Process(pid).environ()["OMP_NUM_THREADS"]) == max(
            len(psutil.Process().cpu_affinity()) // 2, 1
        )
    names = [server.submit(steps=40)["id"] for _ in range(2)]
    server.poll(lambda: all(any(job["step"] for job in worker["jobs"]) for worker in server.status()["workers"]))
    assert server.metric("worker_jobs", worker="0") == server.metric("worker_jobs", worker="1") == 1
    assert_all_drawn(server, names)
    assert all(worker["remaining_s"] == 0 for worker in server.status()["workers"])


def test_a_device_that_fails_to_load_leaves_the_server_degraded_and_serving(start: Start) -> None:
    server = start(*TWO, "--faults", "1:engine.load=gone")
    server.poll(lambda: states(server)[1] == "failed" and states(server)[0] in SERVING)
    status = server.status()
    assert status["status"] == "degraded"
    assert status["workers"][1]["error"] == "the device is not there any more"
    assert status["workers"][0]["error"] is None
    assert_all_drawn(server, [server.submit()["id"] for _ in range(4)])
    assert server.get("/readyz").status_code == 200
    assert (server.metric("workers"), server.metric("workers_ready")) == (2, 1)
    assert server.metric("worker_state", worker="1", state="failed") == 1


def test_a_device_whose_processes_die_again_and_again_loses_no_job(start: Start) -> None:
    server = start(*TWO, "--faults", "1:engine.encode=kill")
    server.poll(lambda: all_serve(server))
    names, seen = [], set()
    jobs = submissions(server)
    while server.status()["workers"][1]["restarts"] < 3:
        names += [next(jobs)["id"] for _ in range(2)]
        server.wait_for(names[-1])
        seen.add(server.status()["status"])
    shown = assert_all_drawn(server, names)
    assert seen & {"degraded"} and seen <= {"degraded", "ready"}
    assert server.get("/readyz").status_code == 200
    assert max(one["attempt"] for one in shown) == 2  # the second time on the other device
    assert server.metric("requests_retried_total") >= 3
    assert "in a row" in server.poll(lambda: server.status()["workers"][1]["error"])


def test_a_slow_device_gets_what_it_finishes_sooner_than_the_fast_one(start: Start) -> None:
    server = start(*TWO, "--batch-limit", "1", "--faults", "1:engine.step=sleep:0.08", step_s=0.01)
    server.poll(lambda: all_serve(server))
    for _ in range(3):  # it learns how fast they are
        assert_all_drawn(server, [server.submit(steps=6)["id"] for _ in range(2)])
    begun = [server.submit(steps=6)["id"] for _ in range(3)]
    slow = set()
    while any(server.prediction(name)["status"] in ("starting", "processing") for name in begun):
        slow |= {job["id"] for job in server.status()["workers"][1]["jobs"]}
    assert not slow
    assert_all_drawn(server, begun)


@pytest.mark.parametrize("overlap", ["never", pytest.param("auto", marks=pytest.mark.slow)])
def test_a_rolling_restart_under_load_refuses_nothing_loses_nothing_and_never_stops_serving(
    overlap: str, start: Start
) -> None:
    server = start(*TWO, "--switch-overlap", overlap, step_s=0.02, STUB_LOAD_S="0.3")
    server.poll(lambda: all_serve(server))
    before = set(server.worker_pids())
    jobs, names = submissions(server), []
    with Watch(server) as watch:
        names += [next(jobs)["id"] for _ in range(8)]
        assert server.http.post("/v1/workers/restart").status_code == 202
        while server.status()["rollout"]["state"] == "running":
            names.append(next(jobs)["id"])
            server.wait_for(names[-8])
        shown = assert_all_drawn(server, names)
    assert server.status()["rollout"]["done"] == [0, 1]
    assert not before & set(server.worker_pids())
    assert watch.readiness == {200}
    assert min(watch.serving) >= 1
    assert len(watch.serving) > 20
    assert {one["attempt"] for one in shown} == {1}
    assert server.metric("requests_refused_total") == 0


MODELS = """
[[models]]
name = "a"
model = "safelight/stub"

[[models]]
name = "b"
model = "safelight/stub"
"""


@pytest.mark.slow
def test_all_workers_go_over_to_another_model_while_some_serve_all_the_time(start: Start, tmp_path: Path) -> None:
    (tmp_path / "safelight.toml").write_text(MODELS)
    config = ("--config", str(tmp_path / "safelight.toml"))
    server = start(*TWO, *config, "--switch-overlap", "never", model="a", STUB_LOAD_S="0.2")
    server.poll(lambda: all_serve(server))
    with Watch(server) as watch:
        names = [server.submit(steps=20)["id"] for _ in range(4)]
        assert server.http.post("/v1/workers/restart?model=b").status_code == 202
        assert_all_drawn(server, names)
        server.poll(lambda: server.status()["rollout"]["state"] == "done")
    assert [worker["model"] for worker in server.status()["workers"]] == ["b", "b"]
    assert watch.readiness == {200}
    assert min(watch.serving) >= 1
