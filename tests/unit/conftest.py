"""One fake checkpoint for the tests that only read it; anyio runs ``async`` tests on asyncio."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.fake_checkpoint import write_checkpoint


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint of a few hundred bytes; tests must not change it."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "whole")
