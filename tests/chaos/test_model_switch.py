"""Two models on one device: processes are killed in the middle of a switch, and nothing that was accepted is lost."""

from __future__ import annotations

import functools
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chaos.chaos_server import ChaosServer
from tests.chaos.conftest import Start

MODELS = """
[[models]]
name = "a"
model = "safelight/stub"

[[models]]
name = "b"
model = "safelight/stub"
"""


@pytest.fixture
def config(tmp_path: Path) -> list[str]:
    """The arguments that serve two models, which load for as long as ``STUB_LOAD_S`` says."""
    file = tmp_path / "safelight.toml"
    file.write_text(MODELS)
    return ["--config", str(file)]


def _submit(server: ChaosServer, model: str, steps: int = 4) -> str:
    body = {"model": model, "input": {"prompt": "chaos", "seed": 1, "num_inference_steps": steps}}
    answer = server.http.post("/v1/predictions", json=body)
    assert answer.status_code == 201, answer.text
    name: str = answer.json()["id"]
    return name


def _worker(server: ChaosServer) -> dict[str, Any]:
    worker: dict[str, Any] = server.status()["workers"][0]
    return worker


def _loading(server: ChaosServer, model: str) -> bool:
    """In the middle: its process is there, and not ready yet."""
    worker = _worker(server)
    coming = worker["coming"] or worker
    return bool(coming["model"] == model and coming["state"] == "loading")


def _assert_all_drawn(server: ChaosServer, jobs: dict[str, str]) -> None:
    for name, model in jobs.items():
        shown = server.wait_for(name)
        assert (shown["status"], shown["model"]) == ("succeeded", model), shown
        assert server.picture(name)
    assert server.is_balanced()


@pytest.mark.parametrize("overlap", ["always", pytest.param("never", marks=pytest.mark.slow)])
def test_a_new_process_that_is_killed_in_the_middle_of_a_switch_loses_no_job(
    overlap: str, start: Start, config: list[str]
) -> None:
    server = start(*config, "--switch-overlap", overlap, model="a", STUB_LOAD_S="0.6")
    old = set(server.worker_pids())
    jobs = {_submit(server, model): model for model in "aabb"}
    server.poll(lambda: _loading(server, "b"))
    (new,) = set(server.worker_pids()) - old
    psutil.Process(new).kill()
    _assert_all_drawn(server, jobs | {_submit(server, "a"): "a"})
    assert server.metric("worker_restarts_total", reason="died") == 1
    assert server.metric("model_switches_total", result="failed") == 0
    assert server.metric("model_switches_total", result="done") <= 2


def test_a_front_that_is_killed_in_the_middle_of_a_switch_loses_no_job(start: Start, config: list[str]) -> None:
    server = start(*config, model="a", STUB_LOAD_S="0.6")
    jobs = {_submit(server, model): model for model in "aabb"}
    server.poll(lambda: _loading(server, "b"))
    jobs |= {_submit(server, "a", steps=20): "a"}
    server.kill()
    restarted = server.restart()
    try:
        restarted.wait_until_ready()
        _assert_all_drawn(restarted, jobs)
    finally:
        restarted.end()


@pytest.mark.slow
def test_models_that_are_asked_for_in_turn_do_not_make_the_device_go_back_and_forth(
    start: Start, config: list[str]
) -> None:
    server = start(*config, model="a")
    jobs = {_submit(server, "ab"[number % 2]): "ab"[number % 2] for number in range(24)}
    _assert_all_drawn(server, jobs)
    assert server.metric("model_switches_total") <= 4


@pytest.mark.slow
def test_a_stop_in_the_middle_of_a_switch_ends_all_processes(start: Start, config: list[str]) -> None:
    server = start(*config, model="a", STUB_LOAD_S="3")
    _submit(server, "b")
    server.poll(lambda: _loading(server, "b"))
    assert len(server.worker_pids()) == 2
    assert server.stop(signal.SIGTERM) == 0


@pytest.mark.slow
def test_loading_and_unloading_again_and_again_keeps_no_memory_and_no_files(start: Start, config: list[str]) -> None:
    server = start(*config, model="a")
    front = psutil.Process(server.process.pid)

    def is_ready(model: str) -> bool:
        return server.get(f"/v1/models/{model}/ready").status_code == 200

    def cycle() -> None:
        for model in "ba":
            assert server.http.post(f"/v1/models/{model}/load").status_code == 202
            server.poll(functools.partial(is_ready, model))
        assert server.http.post("/v1/models/a/unload").status_code == 202
        server.poll(lambda: _worker(server)["state"] == "unloaded" and not server.worker_pids())
        server.wait_for(_submit(server, "a"))

    for _ in range(5):
        cycle()
    files, bytes_before = server.open_files(), front.memory_info().rss
    for _ in range(50):
        cycle()
    assert server.open_files() <= files + 3
    assert front.memory_info().rss - bytes_before < 8_000_000
    assert server.metric("model_switches_total", result="failed") == 0
