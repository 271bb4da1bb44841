"""A ``Front`` whose worker is the real worker process with the stub engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from safelight.config import STUB_MODEL, Config
from safelight.server.front import Front
from safelight.server.store import JobStore
from tests.unit.running_front import TIMEOUT_S, serving, until_ready


@contextlib.asynccontextmanager
async def stub_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step_s: float = 0.01, **settings: Any
) -> AsyncIterator[tuple[Front, httpx.AsyncClient]]:
    """Ready, and a client of it; stopped at the end. A second one on the same folder goes on where the first was."""
    monkeypatch.setenv("STUB_STEP_S", str(step_s))
    (folder / "data").mkdir(exist_ok=True)
    config = Config(model=STUB_MODEL, data_dir=folder / "data", device="cpu", grace_period_s=5.0, **settings)
    with contextlib.closing(JobStore.open(config.data_dir)) as store:
        front = Front(config, store)
        await front.start()
        try:
            async with serving(front) as client:
                await until_ready(front)
                yield front, client
        finally:
            await asyncio.wait_for(front.stop(), TIMEOUT_S)


def events(text: str) -> list[dict[str, str]]:
    """Server-sent events, each with the fields that it has."""
    found = []
    for block in text.split("\n\n"):
        lines = [line.partition(": ") for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            found.append({name: value for name, _, value in lines})
    return found
