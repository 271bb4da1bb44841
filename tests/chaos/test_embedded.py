"""The most important deaths with the embedded model: real torch, real pictures."""

from __future__ import annotations

import os
import signal
import time

import pytest

from safelight.config import EMBEDDED_MODEL
from tests.chaos.chaos_server import ChaosServer, LivenessProbe
from tests.chaos.conftest import Start

pytestmark = pytest.mark.slow

PROMPT = "a large red circle on a blue background"
JOBS = 5


def _submit_all(server: ChaosServer) -> list[str]:
    return [server.submit(f"job-{seed}", steps=12, prompt=PROMPT, seed=seed)["id"] for seed in range(JOBS)]


def _pictures(server: ChaosServer, names: list[str]) -> list[bytes]:
    assert [server.wait_for(name, 90)["status"] for name in names] == ["succeeded"] * len(names)
    return [server.picture(name) for name in names]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The pictures of the same jobs, made in peace."""
    with ChaosServer(tmp_path_factory.mktemp("undisturbed"), model=EMBEDDED_MODEL) as server:
        server.wait_until_ready()
        pictures = _pictures(server, _submit_all(server))
        server.end()
    return pictures


@pytest.mark.timed
def test_a_worker_killed_at_a_step_costs_nothing_but_time(undisturbed: list[bytes], start: Start) -> None:
    """R01: ready again within twenty seconds, the same pictures to the byte."""
    server = start(model=EMBEDDED_MODEL)
    with LivenessProbe(server.url) as probe:
        names = _submit_all(server)
        server.wait_for_step(names[1], 3)
        os.kill(server.worker_pid(), signal.SIGKILL)
        killed_s = time.monotonic()
        server.poll(lambda: server.get("/readyz").status_code == 503)
        server.poll(lambda: server.get("/readyz").status_code == 200, 20)
        assert time.monotonic() - killed_s < 20
        assert _pictures(server, names) == undisturbed
    probe.assert_calm()
    assert server.metric("requests_retried_total") == 1


def test_a_server_killed_at_a_step_goes_on_after_its_restart(undisturbed: list[bytes], start: Start) -> None:
    """R06"""
    server = start(model=EMBEDDED_MODEL)
    names = _submit_all(server)
    server.wait_for_step(names[1], 3)
    server.kill()
    again = server.restart()
    assert _pictures(again, names) == undisturbed
    again.end()
