"""The embedded model on two workers of one CPU: two pictures are drawn at once, and workers are replaced in turn."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from safelight.server.devices import resolve_devices
from tests.server_process import ServerProcess


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("data"), "--device", "cpu", "--workers", "2") as server:
        server.wait_until(lambda status: [worker["state"] for worker in status["workers"]] == ["ready", "ready"])
        yield server
        assert server.stop() == 0


def _submit(server: ServerProcess, steps: int) -> str:
    body = {"input": {"prompt": "a red circle on a blue background", "seed": 7, "num_inference_steps": steps}}
    answer = server.post("/v1/predictions", body)
    assert answer.status_code == 201, answer.text
    name: str = answer.json()["id"]
    return name


def _picture(server: ServerProcess, name: str) -> bytes:
    server.wait_until(lambda _: server.get(f"/v1/predictions/{name}").json()["status"] == "succeeded")
    return server.get(f"/v1/predictions/{name}/output/0").content


def test_two_pictures_are_drawn_at_once_and_are_the_same_on_both(two: ServerProcess) -> None:
    names = [_submit(two, steps=50) for _ in range(2)]
    status = two.wait_until(
        lambda status: all(any(0 < job["step"] < 50 for job in worker["jobs"]) for worker in status["workers"])
    )
    assert sorted(job["id"] for worker in status["workers"] for job in worker["jobs"]) == sorted(names)
    first, second = (_picture(two, name) for name in names)
    assert first == second


@pytest.mark.slow
def test_workers_are_replaced_in_turn_while_pictures_are_drawn(two: ServerProcess) -> None:
    before = set(two.worker_pids())
    names = [_submit(two, steps=20) for _ in range(3)]
    assert two.post("/v1/workers/restart").status_code == 202
    seen = []

    def is_done(status: dict[str, Any]) -> bool:
        seen.append(sum(worker["state"] in ("ready", "busy") for worker in status["workers"]))
        return bool(status["rollout"]["state"] == "done")

    two.wait_until(is_done)
    assert min(seen) >= 1
    assert not before & set(two.worker_pids())
    assert len({_picture(two, name) for name in [*names, _submit(two, steps=20)]}) == 1


def test_torch_takes_the_share_of_the_cores_that_it_is_given() -> None:
    environment = os.environ | dict(resolve_devices("cpu", workers=2)[0].environment)
    code = "import torch; print(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == max(len(os.sched_getaffinity(0)) // 2, 1)
