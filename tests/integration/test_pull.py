"""From a hub to a picture: a pull that is killed on its way, a server that waits for its model, damage afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from safelight.hub.verification import VERDICTS_NAME
from tests.hub_server import TOKEN, HubServer, Trouble, folder_content
from tests.server_process import ServerProcess

MODEL = "acme/tiny"
SHARD = "vae/diffusion_pytorch_model-00001-of-00002.safetensors"
HELD_BYTES = 5_000


@pytest.fixture
def hub(tiny_checkpoint: Path) -> Iterator[HubServer]:
    """Its one model is gated, and real."""
    with HubServer() as server:
        server.add(MODEL, folder_content(tiny_checkpoint) | {"README.md": b"tiny"})
        server.repositories[MODEL].is_gated = True
        yield server


def _start_pull(hub: HubServer, data_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "safelight", "pull", MODEL, "--data-dir", str(data_dir), "--endpoint", hub.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"},
    )


def _pull(hub: HubServer, data_dir: Path) -> str:
    process = _start_pull(hub, data_dir)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert TOKEN not in out
    return out


def _wait_for_bytes(folder: Path, size_bytes: int) -> None:
    end_s = time.monotonic() + 30
    while not any(path.stat().st_size == size_bytes for path in folder.iterdir()):
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_a_server_waits_for_its_model_and_draws_with_what_a_killed_pull_brought(hub: HubServer, tmp_path: Path) -> None:
    arguments = ("--model", MODEL, "--models-dir", str(tmp_path / "data" / "models"), "--warmup-sizes", "256x256")
    with ServerProcess(tmp_path / "server", *arguments, environment={"HF_TOKEN": TOKEN}) as server:
        status = server.wait_until(lambda status: status["status"] == "failed")
        assert f"run `safelight pull {MODEL}`" in status["workers"][0]["error"]
        _kill_a_pull_within_a_file(hub, tmp_path / "data")
        assert server.post(f"/v1/models/{MODEL}/load").status_code == 202
        server.wait_until(lambda status: status["status"] == "failed")

        out = _pull(hub, tmp_path / "data")
        folder = tmp_path / "data" / "models" / MODEL / hub.repositories[MODEL].branches["main"]
        verdicts = (folder / VERDICTS_NAME).stat().st_ino
        content = folder_content(folder)
        assert {name: data for name, data in content.items() if "safelight-" not in name} == {
            name: data
            for name, data in next(iter(hub.repositories[MODEL].commits.values())).items()
            if name != "README.md"
        }
        assert f"safelight serve --model {MODEL}" in out
        assert hub.sent_bytes[SHARD] == len(content[SHARD]), "no byte of it came twice"
        assert hub.requests_of(SHARD)[-1].headers["range"] == f"bytes={HELD_BYTES}-"

        assert server.post(f"/v1/models/{MODEL}/load").status_code == 202
        server.wait_until_ready()
        server.logged(r"verify 0\.")
        assert (folder / VERDICTS_NAME).stat().st_ino == verdicts, "what the pull verified is not read again"
        assert [model["id"] for model in server.get("/v1/models").json()["data"]] == [MODEL]
        answer = server.generate(size="256x256", steps=1, model=MODEL)
        assert answer.status_code == 200
        (worker,) = psutil.Process(server.process.pid).children()
        environment = worker.environ()
        assert TOKEN not in str(environment)
        assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"
        assert server.stop() == 0
        assert not [line for line in server.lines if TOKEN in line]


def _kill_a_pull_within_a_file(hub: HubServer, data_dir: Path) -> None:
    hub.troubles[SHARD].append(Trouble(hold_after=HELD_BYTES))
    process = _start_pull(hub, data_dir)
    assert hub.held.wait(30)
    _wait_for_bytes(data_dir / "models" / MODEL / ".partial", HELD_BYTES)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    assert [path.name for path in (data_dir / "models" / MODEL).iterdir() if not path.name.startswith(".")] == []


def test_damage_after_the_pull_is_found_before_ready_and_repaired_by_pulling_again(
    hub: HubServer, tmp_path: Path
) -> None:
    _pull(hub, tmp_path)
    commit = hub.repositories[MODEL].branches["main"]
    path = tmp_path / "models" / MODEL / commit / SHARD
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with ServerProcess(tmp_path, "--model", f"{MODEL}@{commit[:8]}") as server:
        status = server.wait_until(lambda status: status["status"] == "failed")
        error = status["workers"][0]["error"]
        assert f"{path} is damaged" in error
        assert f"`safelight pull {MODEL}@{commit}` repairs it" in error
        assert server.get("/livez").status_code == 200
        assert "downloaded" in _pull(hub, tmp_path)
        assert server.post(f"/v1/models/{MODEL}/load").status_code == 202
        server.wait_until(lambda status: status["workers"][0]["phase"] in ("import", "weights"))
