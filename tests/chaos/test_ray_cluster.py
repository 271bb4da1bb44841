"""A Ray cluster of several nodes on this machine: what becomes of jobs when an actor, a node or the front goes."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from safelight.config import EMBEDDED_MODEL
from tests.chaos.chaos_server import MARK, ChaosServer, LivenessProbe, kill_left_processes, left_processes
from tests.server_process import gone

LEASE_S = 2.0
JOBS = 8
STEPS = 8
SECRET = "a-secret-of-the-front"
_NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}

Start = Callable[..., ChaosServer]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without a place for workers, on which the front's driver is, and two nodes that have one each."""
    with pytest.MonkeyPatch.context() as patch:
        # What nodes start has their environment, not the front's.
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "STUB_STEP_S": "0.05", MARK: "on-a-node"}.items():
            patch.setenv(name, value)
        # Ray counts a node that was killed as lost after so many looks in vain; by default that takes 15 s.
        looks = {"health_check_period_ms": 1000, "health_check_failure_threshold": 4}
        head = _NODE | {"num_cpus": 0, "include_dashboard": False, "_system_config": looks}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(**_NODE)
        yield cluster
        cluster.shutdown()
        assert gone(_engines(), 10.0)


@pytest.fixture
def start(cluster: Cluster, tmp_path: Path) -> Iterator[Start]:
    """Starts a front whose two workers are ready."""
    servers: list[ChaosServer] = []

    def start_one(**options: Any) -> ChaosServer:
        arguments = ("--cluster", f"ray:{cluster.address}", "--lease-s", str(LEASE_S))
        servers.append(ChaosServer(tmp_path / "data", *arguments, **{"step_s": 0.05} | options))
        _wait_for(servers[-1], 2)
        return servers[-1]

    yield start_one
    try:
        if servers[-1].process.poll() is None:
            servers[-1].end()
            assert gone(_engines(), 5.0)
    finally:
        for server in servers:
            kill_left_processes(server.mark)
            server.__exit__(None, None, None)


def _wait_for(server: ChaosServer, ready: int) -> list[dict[str, Any]]:
    """The workers once so many are ready."""

    def workers() -> list[dict[str, Any]] | None:
        found: list[dict[str, Any]] = server.status()["workers"]
        return found if sum(worker["state"] in ("ready", "busy") for worker in found) == ready else None

    return list(server.poll(workers))


def _engines() -> list[int]:
    """The worker processes on all nodes."""
    return [int(line.split()[0]) for line in left_processes("on-a-node", 0.0) if "safelight.engine.worker" in line]


def _engine_of(server: ChaosServer, worker_id: int) -> psutil.Process:
    pids = [found[1] for line in server.lines if (found := re.search(rf"worker {worker_id} runs on .*pid (\d+)", line))]
    return psutil.Process(int(pids[-1]))


def _busy_node(server: ChaosServer) -> tuple[int, str]:
    """A worker that is in the middle of a job, and its node."""

    def found() -> dict[str, Any] | None:
        workers = server.status()["workers"]
        return next((each for each in workers if any(job["step"] >= 2 for job in each["jobs"])), None)

    worker = server.poll(found)
    return worker["id"], worker["node"]


def _all_done(server: ChaosServer, names: list[str], attempts: int) -> None:
    """Every job succeeded once, so many of them at a second try, and the same seed is the same picture."""
    ended = [server.wait_for(name) for name in names]
    assert [shown["status"] for shown in ended] == ["succeeded"] * len(names)
    assert sorted(shown["attempt"] for shown in ended)[-attempts - 1 :] == [1] + [2] * attempts
    assert len({server.picture(name) for name in names}) == 1
    assert len(server.get("/v1/predictions").json()["results"]) == len(names)
    assert server.is_balanced()


def _submit(server: ChaosServer) -> list[str]:
    return [server.submit(seed=7, steps=STEPS)["id"] for _ in range(JOBS)]


def test_an_actor_that_is_killed_costs_one_job_a_second_try(start: Start) -> None:
    server = start(HF_TOKEN=SECRET, SAFELIGHT_HUB_TOKEN=SECRET)
    assert len({worker["node"] for worker in server.status()["workers"]}) == 2
    assert server.status()["cluster"]["nodes"] == 3
    actors = [_engine_of(server, worker_id).parent() for worker_id in (0, 1)]
    for process in (*actors, *map(psutil.Process, _engines())):
        assert process is not None
        assert SECRET not in process.environ().values()
    names = _submit(server)
    with LivenessProbe(server.url) as probe:
        killed, _ = _busy_node(server)
        actor = actors[killed]
        assert actor is not None
        engine = _engine_of(server, killed)
        actor.kill()
        assert gone([engine.pid])
        _all_done(server, names, attempts=1)
    probe.assert_calm()
    assert server.metric("requests_total", status="succeeded") == JOBS
    assert server.status()["workers"][killed]["restarts"] == 1
    _wait_for(server, 2)


@pytest.mark.slow
def test_a_worker_that_dies_on_a_node_is_replaced_there(start: Start) -> None:
    server = start()
    names = _submit(server)
    first, _ = _busy_node(server)
    _engine_of(server, first).kill()
    _all_done(server, names, attempts=1)
    assert server.metric("worker_restarts_total", reason="died") == 1
    server.logged(r"the worker died \(exit code -9\)")


def test_a_silent_node_is_lost_and_its_late_results_reach_nobody(start: Start) -> None:
    """Stopped, as if its network were cut: its job runs elsewhere, and it ends itself when it wakes up."""
    server = start()
    names = _submit(server)
    silent, node = _busy_node(server)
    engine = _engine_of(server, silent)
    actor = engine.parent()
    assert actor is not None
    actor.send_signal(signal.SIGSTOP)  # the engine goes on, and what it makes gets no further
    server.poll(lambda: server.status()["workers"][silent]["restarts"] == 1)
    server.logged(f"node {re.escape(node)} is silent")
    assert server.metric("worker_restarts_total", reason="lost") == 1
    actor.send_signal(signal.SIGCONT)
    assert gone([actor.pid, engine.pid], 5.0)
    _all_done(server, names, attempts=1)
    assert server.metric("requests_total", status="succeeded") == JOBS


def test_a_lost_node_loses_no_job_and_a_new_one_takes_its_place(cluster: Cluster, start: Start) -> None:
    server = start()
    names = _submit(server)
    lost, place = _busy_node(server)
    (node,) = (each for each in cluster.worker_nodes if each.node_id[:8] in place)
    cluster.remove_node(node, allow_graceful=False)
    _all_done(server, names, attempts=1)
    (left,) = server.poll(lambda: _only_ready(server))  # Ray has one place less, and so has the server
    assert place not in left["node"]
    assert server.status()["status"] == "ready"
    cluster.add_node(**_NODE)
    workers = _wait_for(server, 2)
    assert len({worker["node"] for worker in workers} - {place}) == 2
    assert server.wait_for(server.submit()["id"])["status"] == "succeeded"
    assert lost in (0, 1)


def _only_ready(server: ChaosServer) -> list[dict[str, Any]] | None:
    workers: list[dict[str, Any]] = server.status()["workers"]
    return workers if [worker["state"] for worker in workers] == ["ready"] else None


def test_a_front_that_is_killed_goes_on_where_it_was_and_its_actors_end(start: Start) -> None:
    server = start()
    names = _submit(server)
    _busy_node(server)
    engines = _engines()
    assert len(engines) == 2
    server.kill()
    again = start()
    assert gone(engines, LEASE_S + 5)
    ended = [again.wait_for(name) for name in names]
    assert [shown["status"] for shown in ended] == ["succeeded"] * JOBS
    assert max(shown["attempt"] for shown in ended) == 2
    assert len({again.picture(name) for name in names}) == 1
    assert again.metric("requests_accepted_total") == JOBS
    assert again.is_balanced()


@pytest.mark.slow
def test_the_embedded_model_draws_on_a_node(start: Start) -> None:
    """The real pipeline in a real actor; its picture is large enough for the object store."""
    server = start(model=EMBEDDED_MODEL)
    names = [server.submit("embedded", seed=5, prompt="a red circle on a blue background")["id"]]
    _, _ = _busy_node(server)
    assert server.wait_for(names[0])["status"] == "succeeded"
    assert server.picture(names[0]).startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_cluster_without_its_head_still_draws_and_the_front_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray ends drivers that miss the head; ours goes on with the actors that it has."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args=_NODE | {"include_dashboard": False})
    server = ChaosServer(tmp_path / "data", "--cluster", f"ray:{cluster.address}")
    try:
        _wait_for(server, 1)
        cluster.head_node.kill_gcs_server()
        assert server.wait_for(server.submit()["id"])["status"] == "succeeded"
        server.poll(lambda: server.status()["cluster"]["error"], 60)
        assert server.get("/livez").status_code == 200
        assert server.stop() == 0
    finally:
        kill_left_processes(server.mark)
        server.__exit__(None, None, None)
        cluster.shutdown()
