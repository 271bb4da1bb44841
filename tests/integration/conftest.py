"""One warm server with the embedded model for the tests that only ask it things; a tiny checkpoint to break."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tests.server_process import ServerProcess


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """An engine in this process takes the libraries offline; programs that later tests start are not to be."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The embedded model, ready. Tests must not end it."""
    with ServerProcess(tmp_path_factory.mktemp("data")) as server:
        server.wait_until_ready()
        yield server
        assert server.stop() == 0
        assert not [line for line in server.lines if "Traceback" in line or "never retrieved" in line]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random FLUX of 0.5 MB in shards; tests must not change it."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture
def broken_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint to damage."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
