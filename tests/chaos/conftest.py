"""A server per test, ended with the epilogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.chaos_server import ChaosServer, kill_left_processes

Start = Callable[..., ChaosServer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a ready server; the last one started is ended with the epilogue, unless the test has ended it."""
    servers: list[ChaosServer] = []

    def start_one(*arguments: str, is_ready: bool = True, **options: Any) -> ChaosServer:
        servers.append(ChaosServer(tmp_path / "data", *arguments, **options))
        if is_ready:
            servers[-1].wait_until_ready()
        return servers[-1]

    yield start_one
    try:
        for server in servers:
            if server.process.poll() is None:
                server.end()
    finally:
        for server in servers:
            kill_left_processes(server.mark)
            server.__exit__(None, None, None)
