"""One fake checkpoint for the tests that only read it; anyio runs ``async`` tests on asyncio."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.fake_checkpoint import write_checkpoint
from tests.unit.running_front import open_stores


@pytest.fixture(scope="session", autouse=True)
def _close_stores() -> Iterator[None]:
    yield
    for store in open_stores:
        store.close()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint of a few hundred bytes; tests must not change it."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "whole")
