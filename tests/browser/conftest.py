"""A browser and a server per module. Without Chromium these tests are skipped, but not in CI."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser.visitor import Visitor, chromium_path, launch
from tests.chaos.chaos_server import ChaosServer, kill_left_processes

Start = Callable[..., ChaosServer]
Visit = Callable[..., Visitor]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of a module, not of the session: while Playwright is there, no other event loop can run in this thread."""
    if chromium_path() is None:
        reason = "no Chromium: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with sync_playwright() as playwright:
        launched = launch(playwright)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Browser) -> Visit:
    """A visit to a server's page, as a context manager."""

    def begin(server: Any, **options: Any) -> Visitor:
        return Visitor(browser, f"{server.url}/", **options)

    return begin


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers with the stub engine, loaded or not; all of them are ended."""
    servers: list[ChaosServer] = []

    def start_one(*arguments: str, is_ready: bool = True, **options: Any) -> ChaosServer:
        servers.append(ChaosServer(tmp_path / "data", *arguments, **options))
        if is_ready:
            servers[-1].wait_until_ready()
        return servers[-1]

    yield start_one
    for server in servers:
        kill_left_processes(server.mark)
        server.__exit__(None, None, None)


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosServer]:
    """One ready server with the stub engine for all tests of a module that only use it."""
    with ChaosServer(tmp_path_factory.mktemp("stub"), step_s=0.05) as server:
        server.wait_until_ready()
        yield server
        assert server.stop() == 0
        assert server.complaints() == []
