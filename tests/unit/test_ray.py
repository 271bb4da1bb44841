"""What the front needs no cluster for: addresses, devices, refusals at the start, and the actor's own work."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from safelight import __version__
from safelight.checkpoint import open_checkpoint
from safelight.checkpoint.fingerprint import fingerprint
from safelight.config import STUB_MODEL, Config, load_config
from safelight.errors import ConfigError, LoadError
from safelight.protocol import Cancel, Generate, Load, LoadFailed, Message, Ready, Succeeded, WorkerMessage
from safelight.server import loader as loader_module
from safelight.server.devices import Device
from safelight.server.ray_cluster import devices_of, kind_of_devices, ray_address
from safelight.server.ray_host import WorkerHost, at_node
from safelight.server.ray_process import with_absolute_paths
from safelight.server.roster import Roster
from safelight.server.serve import _check_devices
from safelight.server.worker import Worker
from safelight.server.worker_process import WorkerProcess
from tests.server_process import gone
from tests.unit.fake_checkpoint import write_checkpoint
from tests.unit.running_front import TIMEOUT_S, make_front, params, running_front, submit, until

LOAD = Load(STUB_MODEL, "cpu", "auto", [(64, 64)], models_dir="/front/models", loras_dir="/front/loras")


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "address"),
    [
        ("ray", None),
        ("ray:10.0.0.1:6379", "10.0.0.1:6379"),
        ("ray:head.example.org:6379", "head.example.org:6379"),
        ("ray:[::1]:6379", "[::1]:6379"),
        ("ray://10.0.0.1:6379", "10.0.0.1:6379"),
        ("ray://head", "head:6379"),
        ("ray:[::1]", "[::1]:6379"),
    ],
)
def test_a_cluster_has_an_address(setting: str, address: str | None) -> None:
    config = load_config({"cluster": setting}, {})
    assert config.cluster == setting
    assert ray_address(setting) == address


@pytest.mark.parametrize("setting", ["", "local", "ray:", "ray://", "ray:h:0", "ray:h:65536", "ray://h:x", "ray/x:1"])
def test_what_is_no_cluster_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"--cluster='.*' is not ray or ray://HOST\[:PORT\]"):
        load_config({"cluster": setting}, {})


def test_a_lease_leaves_a_network_time_to_hesitate() -> None:
    assert load_config({"lease_s": "2.5"}, {}).lease_s == 2.5
    with pytest.raises(ConfigError, match="is less than 2 seconds"):
        load_config({"lease_s": "1"}, {})


def test_without_the_package_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--cluster='ray' needs Ray: pip install 'safelight\[ray\]'"):
        _check_devices(Config(cluster="ray"))


def test_cards_of_a_cluster_are_not_chosen_here() -> None:
    with pytest.raises(
        ConfigError, match="--device='cuda:0,1' does not go with --cluster='ray': Ray chooses the cards"
    ):
        _check_devices(Config(cluster="ray", device="cuda:0,1"))


def test_workers_of_several_machines_share_no_picture() -> None:
    with pytest.raises(ConfigError, match="--sequence-parallel='2' does not go with --cluster='ray'"):
        _check_devices(Config(cluster="ray", sequence_parallel="2"))
    _check_devices(Config(cluster="ray"))


@pytest.mark.parametrize("flag", ["--api-keys=me=12345678", "--admin-keys"])
def test_keys_on_the_command_line_would_be_seen_by_the_whole_cluster(
    flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["safelight", "serve", flag])
    with pytest.raises(ConfigError, match="give keys as SAFELIGHT_API_KEYS"):
        _check_devices(Config(cluster="ray"))
    _check_devices(Config())


def test_a_server_without_a_cluster_never_imports_ray() -> None:
    program = "import sys; import safelight.server.serve; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"


# --- devices ----------------------------------------------------------------------------------------------------------


def _node(**resources: float) -> dict[str, Any]:
    return {"Resources": resources}


def test_there_is_a_device_for_each_gpu_or_for_each_node() -> None:
    nodes = [_node(CPU=8, GPU=2), _node(CPU=8, GPU=1), _node(), _node(CPU=4)]
    assert [kind_of_devices(setting, nodes) for setting in ("auto", "cpu", "cuda", "all")] == [
        "cuda",
        "cpu",
        "cuda",
        "cuda",
    ]
    assert kind_of_devices("auto", nodes[2:]) == "cpu"
    assert devices_of("cuda", nodes, 0) == [Device(f"cuda:ray-{i}", "cuda:0", {}, is_placed=True) for i in range(3)]
    assert [device.name for device in devices_of("cpu", nodes, 0)] == ["cpu:ray-0", "cpu:ray-1", "cpu:ray-2"]
    assert devices_of("cpu", nodes, 0)[0].environment == {"CUDA_VISIBLE_DEVICES": ""}


def test_a_cluster_that_is_still_to_grow_is_asked_for_one_worker_or_for_as_many_as_are_wanted() -> None:
    assert len(devices_of("cuda", [], 0)) == 1
    assert len(devices_of("cuda", [_node(GPU=1)], 4)) == 4


@pytest.mark.anyio
async def test_workers_come_and_go_with_the_devices(tmp_path: Path) -> None:
    front = make_front(tmp_path)
    del front.workers[:]
    assert front.status()["status"] == "loading"
    hired: list[int] = []

    def hire(worker_id: int, device: Device) -> Worker:
        hired.append(worker_id)
        return front._hire(worker_id, device)

    roster = Roster(front.workers, hire)
    three = devices_of("cpu", [], 3)
    roster.resize(three)
    roster.resize(three)
    assert [worker.id for worker in front.workers] == hired == [0, 1, 2]
    roster.resize(three[:2])
    await roster.settle()
    assert [worker.id for worker in front.workers] == [0, 1]
    del front.workers[0]
    roster.resize(three[:2])
    assert [worker.id for worker in front.workers] == [1, 0]
    await front.stop()


@pytest.mark.anyio
async def test_machines_that_are_lost_say_nothing_against_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three workers that die with a job end it; lost machines never do."""
    stop = WorkerProcess.stop

    async def stop_without_a_code(process: WorkerProcess, *, politely: bool) -> None:
        await stop(process, politely=politely)

    monkeypatch.setattr(WorkerProcess, "stop", stop_without_a_code)
    monkeypatch.setattr(loader_module, "BACK_OFF_S", (0.0,))
    async with running_front(tmp_path, "dies_in_a_job") as front:
        job = await submit(front)
        await until(front.changes, lambda: job.attempt > 4)
        assert job.crashes == 0
        lost = front.metrics.registry.get_sample_value("safelight_worker_restarts_total", {"reason": "lost"})
        assert lost is not None
        assert lost >= 4


# --- models -----------------------------------------------------------------------------------------------------------


def test_the_same_files_have_the_same_fingerprint_wherever_they_lie(tmp_path: Path) -> None:
    here, there = (write_checkpoint(tmp_path / name) for name in ("here", "there"))
    assert fingerprint(open_checkpoint(str(here))) == fingerprint(open_checkpoint(str(there)))
    weights = next(there.glob("transformer/*.safetensors"))
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert fingerprint(open_checkpoint(str(here))) != fingerprint(open_checkpoint(str(there)))


def test_a_node_has_its_own_folders() -> None:
    assert at_node(LOAD, {}) == LOAD
    found = at_node(LOAD, {"SAFELIGHT_DATA_DIR": "/data", "SAFELIGHT_LORAS_DIR": "/loras"})
    assert (found.models_dir, found.loras_dir) == ("/data/models", "/loras")
    assert at_node(LOAD, {"SAFELIGHT_MODELS_DIR": "/models"}).models_dir == "/models"


def test_a_path_is_sent_in_full_and_a_name_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    load = msgspec.structs.replace(LOAD, model="model", base_model="owner/name", models_dir="models")
    sent = with_absolute_paths(load)
    assert (sent.model, sent.base_model) == (str(tmp_path / "model"), "owner/name")
    assert sent.models_dir == str(tmp_path / "models")


# --- the actor, without Ray -------------------------------------------------------------------------------------------


class _Hosted:
    """A ``WorkerHost`` in this process, and what it has reported."""

    def __init__(self, lease_s: float = 60.0) -> None:
        self.host = WorkerHost(lease_s)
        self.lines: list[bytes] = []
        self.exit_code: int | None = None
        self.messages: list[WorkerMessage] = []

    async def begin(self, model: str, version: str = __version__) -> int:
        return await self.host.begin(version, "10.0.0.2", model, {"STUB_STEP_S": "0.001"}, [])

    async def send(self, number: int, message: Message) -> None:
        await self.host.deliver(number, msgspec.msgpack.encode(message))

    async def until(self, kind: type[WorkerMessage]) -> WorkerMessage:
        async with asyncio.timeout(TIMEOUT_S):
            while not (found := [each for each in self.messages if isinstance(each, kind)]):
                await self._ask()
        return found[0]

    async def end(self) -> int:
        async with asyncio.timeout(TIMEOUT_S):
            while self.exit_code is None:
                await self._ask()
        return self.exit_code

    async def _ask(self) -> None:
        packed, lines, self.exit_code = await self.host.reports()
        self.messages += [msgspec.msgpack.decode(each, type=WorkerMessage) for each in packed]
        self.lines += lines


def _stub() -> str:
    return fingerprint(open_checkpoint(STUB_MODEL))


@pytest.mark.anyio
async def test_a_host_has_a_worker_as_the_front_has_one() -> None:
    hosted = _Hosted()
    await hosted.begin(_stub())
    await hosted.send(0, LOAD)
    assert isinstance(await hosted.until(Ready), Ready)
    # Ray may bring what was sent last first.
    await hosted.send(2, Cancel("another"))
    await hosted.send(1, Generate("job_1", 1, params(num_inference_steps=2)))
    done = await hosted.until(Succeeded)
    assert isinstance(done, Succeeded)
    assert done.images[0].data.startswith(b"\x89PNG")
    await hosted.host.dump_stacks()
    assert await hosted.host.stop() == 0
    assert await hosted.end() == 0
    assert any(b"most recent call first" in line for line in hosted.lines)


@pytest.mark.anyio
async def test_a_node_with_another_model_or_none_says_so(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "checkpoint")
    for model, sentence in (
        (str(path), "on node 10.0.0.2: .* is another model than the front has: copy the front's files"),
        (str(tmp_path / "nowhere"), "on node 10.0.0.2: .*nowhere"),
    ):
        hosted = _Hosted()
        await hosted.begin("the fingerprint of the front's")
        await hosted.send(0, msgspec.structs.replace(LOAD, model=model))
        failed = await hosted.until(LoadFailed)
        assert isinstance(failed, LoadFailed)
        assert re.search(sentence, failed.message), failed.message
        await hosted.host.stop()


@pytest.mark.anyio
async def test_a_node_with_another_version_is_refused_by_name() -> None:
    with pytest.raises(LoadError, match=r"node 10.0.0.2 has Safelight .*, the front 0.0.0: install the same on both"):
        await _Hosted().begin(_stub(), version="0.0.0")


def test_a_host_that_its_front_has_forgotten_ends_itself_and_its_worker() -> None:
    program = """
import asyncio, tests.unit.test_ray as here
async def main():
    hosted = here._Hosted(lease_s=0.3)
    print(await hosted.begin(here._stub()), flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert gone([int(done.stdout)], TIMEOUT_S)
