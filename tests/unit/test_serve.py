"""The front process from bind to exit, with a fake worker: signals, exit codes, what goes wrong before it loads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest

from safelight.cli import main
from safelight.config import Config
from safelight.errors import ConfigError
from safelight.jobs import JobStatus
from safelight.server import serve as serve_module
from safelight.server.front import Front
from safelight.server.listener import bind, url_of
from safelight.server.serve import serve
from safelight.server.store import JobStore
from safelight.tracing import Tracing
from tests.plain_http import open_async_client
from tests.unit.fake_worker import worker_command
from tests.unit.running_front import TIMEOUT_S, until

pytestmark = pytest.mark.anyio


class Served:
    """``serve`` as a task of this loop, with its ``Front`` at hand."""

    def __init__(self, folder: Path, model: Path, behaviour: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.front: Front | None = None
        self.made = asyncio.Event()
        self.config = Config(data_dir=folder, model=str(model), device="cpu", grace_period_s=2.0)
        self.sock = bind("127.0.0.1", 0)
        self.url = url_of(self.sock)

        def make(config: Config, store: JobStore, tracing: Tracing, cluster: object) -> Front:
            self.front = Front(config, store, worker_command(behaviour, folder / "marker"), tracing)
            self.made.set()
            return self.front

        monkeypatch.setattr(serve_module, "Front", make)
        self.task = asyncio.create_task(self._serve())

    async def _serve(self) -> int:
        with contextlib.closing(JobStore.open(self.config.data_dir)) as store:
            return await serve_module._serve(self.config, self.sock, store)

    async def until(self, state: str) -> Front:
        await asyncio.wait_for(self.made.wait(), TIMEOUT_S)
        front = self.front
        assert front is not None
        await until(front.changes, lambda: front.state == state)
        return front

    async def end(self, number: signal.Signals) -> int:
        os.kill(os.getpid(), number)
        return await asyncio.wait_for(self.task, TIMEOUT_S)


@pytest.mark.timed
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize(
    ("behaviour", "state"),
    [
        ("never_finishes_loading", "loading"),
        ("never_finishes_warmup", "warming"),
        ("is_ready", "ready"),
        ("fails_to_load", "failed"),
    ],
)
async def test_a_signal_ends_it_with_0_and_no_process_left(
    behaviour: str,
    state: str,
    number: signal.Signals,
    tmp_path: Path,
    checkpoint_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = Served(tmp_path, checkpoint_dir, behaviour, monkeypatch)
    await served.until(state)
    start_s = time.monotonic()
    assert await served.end(number) == 0
    assert time.monotonic() - start_s < 4
    assert not psutil.Process().children()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{served.url}/livez", trust_env=False)


async def test_after_the_signal_probes_are_answered_and_the_running_image_is_finished(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(tmp_path, checkpoint_dir, "has_slow_steps", monkeypatch)
    front = await served.until("ready")
    async with open_async_client(served.url, TIMEOUT_S) as client:
        image = asyncio.create_task(client.post("/v1/images/generations", json={"prompt": "a", "steps": 10}))
        await until(front.changes, lambda: front.ledger.count(JobStatus.RUNNING) == 1)
        ending = asyncio.create_task(served.end(signal.SIGTERM))
        await until(front.changes, lambda: front.is_draining)
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
        refused = await client.post("/v1/images/generations", json={"prompt": "b"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert (await image).status_code == 200
    assert await ending == 0


async def test_a_second_signal_does_not_wait_for_the_grace_period(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(tmp_path, checkpoint_dir, "never_finishes_a_step", monkeypatch)
    front = await served.until("ready")
    async with open_async_client(served.url, TIMEOUT_S) as client:
        image = asyncio.create_task(client.post("/v1/images/generations", json={"prompt": "a"}))
        await until(front.changes, lambda: front.ledger.count(JobStatus.RUNNING) == 1)
        ending = asyncio.create_task(served.end(signal.SIGTERM))
        await until(front.changes, lambda: front.is_draining)
        os.kill(os.getpid(), signal.SIGINT)
        assert (await image).status_code in (500, 503)
        assert await ending == 0
    assert not psutil.Process().children()


@pytest.mark.timed
async def test_an_open_status_stream_does_not_hold_up_the_end(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(tmp_path, checkpoint_dir, "is_ready", monkeypatch)
    await served.until("ready")
    async with (
        open_async_client(served.url, TIMEOUT_S) as client,
        client.stream("GET", "/v1/status/stream") as answer,
    ):
        lines = answer.aiter_lines()
        await anext(lines)
        start_s = time.monotonic()
        ending = asyncio.create_task(served.end(signal.SIGTERM))
        assert [line async for line in lines]
        assert await ending == 0
        assert time.monotonic() - start_s < 3


# --- before anything loads ----------------------------------------------------------------------------------------


def test_a_port_in_use_is_known_before_anything_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with bind("127.0.0.1", 0) as taken:
        arguments = ["serve", "--port", str(taken.getsockname()[1]), "--data-dir", str(tmp_path / "data")]
        assert main(arguments) == 1
    assert "is in use by another process" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_a_data_directory_that_cannot_be_made_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for data_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        with bind("127.0.0.1", 0) as sock, pytest.raises(ConfigError, match=r"--data-dir='.*file.*' cannot be made"):
            serve(Config(data_dir=data_dir), sock)


def test_a_data_directory_that_cannot_be_written_is_a_wrong_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with bind("127.0.0.1", 0) as sock, pytest.raises(ConfigError, match="is not writable"):
        serve(Config(data_dir=tmp_path), sock)


def test_a_new_data_directory_is_private(tmp_path: Path) -> None:
    serve_module._make_data_dir(Config(data_dir=tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--port", "http"), 2, "safelight: --port='http' is not a whole number from 0 to 65535"),
        (("--config", "/no/such.toml"), 2, "safelight: --config='/no/such.toml' cannot be read: No such file"),
        (("--host", "192.0.2.1"), 2, "safelight: cannot listen on 192.0.2.1:8000: Cannot assign requested address"),
    ],
    ids=["value", "config", "host"],
)
def test_what_is_wrong_is_one_line_and_an_exit_code_at_once(
    arguments: tuple[str, ...], code: int, sentence: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "safelight", "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=TIMEOUT_S)
    assert done.returncode == code
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
