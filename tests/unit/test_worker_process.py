"""One child process and its socketpair, with a real child."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from safelight.errors import ProtocolError
from safelight.protocol import Cancelled, Generate, Load, LoadFailed, Ready, StepDone, WorkerMessage
from safelight.server import worker_process
from safelight.server.worker_process import WORKER_COMMAND, WorkerProcess
from tests.unit.fake_worker import PHASE_SECONDS, worker_command
from tests.unit.running_front import TIMEOUT_S, params

pytestmark = pytest.mark.anyio

LOAD = Load("a/model", "cpu", "auto", [])


async def _spawn(folder: Path, behaviour: str) -> WorkerProcess:
    return await WorkerProcess.spawn({"CUDA_VISIBLE_DEVICES": ""}, (), worker_command(behaviour, folder / "marker"))


async def _receive_until(process: WorkerProcess, kind: type[WorkerMessage]) -> WorkerMessage:
    async with asyncio.timeout(TIMEOUT_S):
        while not isinstance(message := await process.receive(), kind):
            assert message is not None
    return message


async def test_a_child_loads_when_told_and_ends_politely(tmp_path: Path) -> None:
    process = await _spawn(tmp_path, "is_ready")
    process.send(LOAD)
    assert await _receive_until(process, Ready) == Ready(PHASE_SECONDS)
    assert await process.stop(politely=True) == 0
    assert (tmp_path / "marker").exists()
    assert not psutil.pid_exists(process.pid)


async def test_a_child_that_ignores_shutdown_is_killed_after_its_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "_EXIT_GRACE_S", 0.05)
    process = await _spawn(tmp_path, "ignores_shutdown")
    process.send(LOAD)
    await _receive_until(process, Ready)
    assert await process.stop(politely=True) == -signal.SIGKILL


async def test_impolitely_a_child_is_killed_at_once(tmp_path: Path) -> None:
    process = await _spawn(tmp_path, "never_finishes_loading")
    process.send(LOAD)
    assert await asyncio.wait_for(process.stop(politely=False), TIMEOUT_S) == -signal.SIGKILL
    assert await process.receive() is None


async def test_stopping_twice_gives_the_same_exit_code(tmp_path: Path) -> None:
    process = await _spawn(tmp_path, "is_ready")
    codes = list(await asyncio.gather(process.stop(politely=False), process.stop(politely=True)))
    assert codes == [-signal.SIGKILL, -signal.SIGKILL]
    assert await process.stop(politely=True) == -signal.SIGKILL


async def test_the_end_of_a_child_ends_receiving(tmp_path: Path) -> None:
    process = await _spawn(tmp_path, "dies_while_loading")
    process.send(LOAD)
    async with asyncio.timeout(TIMEOUT_S):
        while await process.receive() is not None:
            pass
    process.send(LOAD)
    assert await process.stop(politely=True) == 3


async def test_a_child_gets_its_device_its_environment_and_a_process_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    command = worker_command("repeats_its_orders", tmp_path / "marker")
    process = await WorkerProcess.spawn({"CUDA_VISIBLE_DEVICES": "7"}, (), command)
    process.send(Load("a/model", "cuda:0", "bfloat16", [(64, 32), (16, 16)]))
    failed = await _receive_until(process, LoadFailed)
    assert isinstance(failed, LoadFailed)
    assert failed.message == "a/model|cuda:0|bfloat16|64x32,16x16|auto|1|0||7|True"
    await process.stop(politely=False)


async def test_a_child_is_offline_and_gets_neither_keys_nor_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "SAFELIGHT_HUB_TOKEN", "SAFELIGHT_API_KEYS", "HF_OIDC_ID_TOKEN"):
        monkeypatch.setenv(name, "a-secret-of-the-front")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    process = await _spawn(tmp_path, "is_ready")
    process.send(LOAD)
    await _receive_until(process, Ready)
    environment = psutil.Process(process.pid).environ()
    await process.stop(politely=False)
    assert "a-secret-of-the-front" not in environment.values()
    offline = (
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "DIFFUSERS_DISABLE_REMOTE_CODE",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    )
    assert [environment[name] for name in offline] == ["1"] * len(offline)


async def test_nothing_but_the_socket_is_inherited(tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        process = await _spawn(tmp_path, "is_ready")
        process.send(LOAD)
        await _receive_until(process, Ready)
        inherited = [opened.path for opened in psutil.Process(process.pid).open_files()]
    assert str(tmp_path / "open") not in inherited
    await process.stop(politely=False)


@pytest.mark.parametrize("behaviour", ["writes_garbage", "writes_broken_text", "announces_four_gigabytes"])
async def test_what_cannot_be_read_is_a_protocol_error(behaviour: str, tmp_path: Path) -> None:
    process = await _spawn(tmp_path, behaviour)
    process.send(Generate("job_1", 1, params()))
    with pytest.raises(ProtocolError):
        await _receive_until(process, Cancelled)
    await process.stop(politely=False)


async def test_a_child_ends_when_the_front_is_killed(tmp_path: Path) -> None:
    program = f"""
import asyncio, os
from safelight.server.worker_process import WorkerProcess
async def main():
    process = await WorkerProcess.spawn({{}}, (), {worker_command("is_ready", tmp_path / "marker")!r})
    print(process.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    front = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=subprocess.PIPE)
    assert front.stdout is not None
    child = psutil.Process(int(await asyncio.wait_for(front.stdout.readline(), TIMEOUT_S)))
    front.kill()
    await front.wait()
    await asyncio.to_thread(psutil.wait_procs, [child], TIMEOUT_S)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_the_worker_command_names_the_engine_without_importing_it() -> None:
    assert (sys.executable, "-m", "safelight.engine.worker") == WORKER_COMMAND


async def test_steps_arrive_one_by_one(tmp_path: Path) -> None:
    process = await _spawn(tmp_path, "is_ready")
    process.send(Generate("job_1", 1, params(num_inference_steps=3)))
    assert [await process.receive() for _ in range(3)] == [StepDone("job_1", 1, step, 3) for step in (1, 2, 3)]
    await process.stop(politely=False)


async def test_a_start_that_is_cancelled_at_any_moment_leaves_no_child(tmp_path: Path) -> None:
    for turns in range(12):
        starting = asyncio.create_task(_spawn(tmp_path, "is_ready"))
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        starting.cancel()
        (process,) = await asyncio.gather(starting, return_exceptions=True)
        if isinstance(process, WorkerProcess):
            await process.stop(politely=False)
        assert not psutil.Process().children()
