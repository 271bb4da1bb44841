"""As many workers as devices, or as the CPU is to have; and as many of those as the memory holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from safelight.errors import ConfigError
from safelight.server import devices as devices_module
from safelight.server import fleet
from safelight.server.devices import resolve_devices
from safelight.server.worker_state import WorkerState
from tests.unit.running_front import ended, running_front, submit, until

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices_module, "_cores", lambda: 5)


@pytest.mark.parametrize(("workers", "threads"), [(2, "2"), (3, "1"), (5, "1"), (8, "1")])
def test_workers_on_the_cpu_share_its_cores(workers: int, threads: str) -> None:
    found = resolve_devices("cpu", workers=workers)
    assert [device.name for device in found] == [f"cpu:{index}" for index in range(workers)]
    assert {device.torch_name for device in found} == {"cpu"}
    assert {device.environment["OMP_NUM_THREADS"] for device in found} == {threads}


def test_threads_that_the_environment_has_are_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert all("OMP_NUM_THREADS" not in device.environment for device in resolve_devices("cpu", workers=2))


def test_one_worker_has_the_cpu_as_it_always_had() -> None:
    assert resolve_devices("cpu") == resolve_devices("cpu", workers=1)
    assert "OMP_NUM_THREADS" not in resolve_devices("cpu")[0].environment


def test_on_cuda_there_are_as_many_workers_as_devices(tmp_path: Path) -> None:
    for index in range(2):
        (tmp_path / f"nvidia{index}").touch()
    for setting in ("auto", "cuda", "all", "cuda:0,1"):
        assert len(resolve_devices(setting, tmp_path)) == len(resolve_devices(setting, tmp_path, workers=2)) == 2
        with pytest.raises(ConfigError, match="--workers=3 does not go with cuda:0, cuda:1: there is one worker for"):
            resolve_devices(setting, tmp_path, workers=3)
    assert len(resolve_devices("cpu", tmp_path, workers=3)) == 3


async def test_workers_that_the_memory_does_not_hold_say_so_and_the_others_serve(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "free_host_bytes", lambda: 2_500_000_000)
    async with running_front(tmp_path, model=str(checkpoint_dir), workers=3) as front:
        await until(front.changes, lambda: sum(worker.is_serving for worker in front.workers) == 2)
        assert [worker.state for worker in front.workers[:2]] == [WorkerState.READY] * 2
        refused = front.workers[2]
        assert refused.state is WorkerState.FAILED
        assert refused.error is not None
        assert "3 workers with" in refused.error.message
        assert "2.5 GB are free: --workers 2 fits" in refused.error.message
        assert front.state == "degraded"
        assert (await ended(front, await submit(front))).status == "succeeded"
        front.placement.load(front.model)  # an operator may insist
        await until(front.changes, lambda: refused.is_serving)


async def test_the_first_worker_is_not_refused_for_want_of_memory(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "free_host_bytes", lambda: 1)
    async with running_front(tmp_path, model=str(checkpoint_dir), workers=2) as front:
        await until(front.changes, lambda: front.workers[0].is_serving)
        assert front.workers[1].state is WorkerState.FAILED


def test_a_number_of_workers_that_the_devices_contradict_ends_the_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "safelight", "serve", "--port", "0", "--data-dir", str(tmp_path / "data")]
    run = subprocess.run(
        [*command, "--device", "cuda:0,1", "--workers", "3"], capture_output=True, text=True, timeout=30
    )
    assert run.returncode == 2
    assert run.stderr.startswith("safelight: --workers=3 does not go with cuda:0, cuda:1")
    assert not (tmp_path / "data").exists()
