"""A server with two real workers: who is alone gets both, who is not gets one, and a death costs an attempt only."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks.live_server import LiveServer, started_server
from benchmarks.traffic import Asked

TIMEOUT_S = 120.0
_PROMPT = "a large red circle on a blue background"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("two")
    program = ["-m", "benchmarks.front_process", "--workers", "2", "--"]
    options = ["--device", "cpu", "--sequence-parallel", "2", "--warmup-sizes", "128x128"]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")  # threads that spin while another process has the core help nobody
        with started_server(options, folder, TIMEOUT_S, program) as server:
            _until_all_ready(server)
            yield server


def _until(condition: Callable[[], object]) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def _until_all_ready(server: LiveServer) -> None:
    server.wait_until_ready()
    _until(lambda: {worker["state"] for worker in server.status()["workers"]} == {"ready"})


def _made(server: LiveServer) -> dict[str, int]:
    """How many jobs were made by one worker, and by two."""
    totals = server.totals()
    return {size: int(totals.get(f"safelight_team_jobs_total {size}", 0)) for size in ("1", "2")}


def _asked(seed: int) -> Asked:
    return Asked(0.0, _PROMPT, "128x128", 4, seed)


def _pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.asarray(Image.open(io.BytesIO(data)), dtype=np.int16)


def test_a_picture_made_by_both_is_the_one_that_each_makes_under_load(two: LiveServer) -> None:
    before = _made(two)
    together = two.picture(_asked(7))
    assert _made(two)["2"] == before["2"] + 1
    with ThreadPoolExecutor(8) as threads:
        under_load = list(threads.map(two.picture, [_asked(7)] * 8))
    assert _made(two)["1"] >= before["1"] + 7
    assert max(int(np.abs(_pixels(together) - _pixels(alone)).max()) for alone in under_load) <= 1


def test_a_job_outlives_one_of_its_workers(two: LiveServer) -> None:
    before = _made(two)
    job_id = two.submit({"prompt": _PROMPT, "width": 128, "height": 128, "num_inference_steps": 90, "seed": 7})
    _until(lambda: two.job(job_id)["progress"]["step"] >= 2)
    shown = [worker["jobs"] for worker in two.status()["workers"]]
    assert [[job["workers"] for job in jobs] for jobs in shown] == [[[0, 1]]] * 2
    _worker_processes(two)[1].kill()
    _until(lambda: two.job(job_id)["completed_at"])
    job = two.job(job_id)
    assert (job["status"], job["attempt"]) == ("succeeded", 2)
    assert _made(two) == {"1": before["1"] + 1, "2": before["2"]}
    _until_all_ready(two)
    two.picture(_asked(7))
    assert _made(two)["2"] == before["2"] + 1
    assert [worker["restarts"] for worker in two.status()["workers"]] == [0, 1]


def _worker_processes(server: LiveServer) -> list[psutil.Process]:
    """In the order of the devices."""
    assert server._process is not None
    children = psutil.Process(server._process.pid).children()
    workers = [child for child in children if "safelight.engine.worker" in child.cmdline()]
    return sorted(workers, key=lambda child: next(part for part in child.cmdline() if part.startswith("--worker-id")))
