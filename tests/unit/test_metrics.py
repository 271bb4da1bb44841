"""Counters that add up at every scrape."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from safelight.server import worker as worker_module
from safelight.server.front import Front
from safelight.server.metrics import GAUGES
from tests.unit.running_front import ended, running_front, serving, submit, until_ready

pytestmark = pytest.mark.anyio


def scrape(text: str) -> dict[str, float]:
    """Sums over all labels."""
    totals: dict[str, float] = {}
    for name, value in re.findall(r"^(\w+)(?:\{[^}]*\})? (\S+)$", text, re.MULTILINE):
        totals[name] = totals.get(name, 0.0) + float(value)
    return totals


def _is_balanced(front: Front) -> bool:
    totals = scrape(front.metrics.page().decode())
    return totals["safelight_requests_accepted_total"] == (
        totals.get("safelight_requests_total", 0.0)
        + totals["safelight_requests_waiting"]
        + totals["safelight_requests_running"]
    )


async def test_accepted_is_the_sum_of_the_rest_after_every_change(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_BACK_OFF_S", (0.0, 0.01))
    async with running_front(tmp_path, "dies_in_the_first_job", model=str(checkpoint_dir)) as front:
        unbalanced: list[int] = []

        async def scrape_all_the_time() -> None:
            while True:
                if not _is_balanced(front):
                    unbalanced.append(front.changes.count)
                await asyncio.sleep(0.001)

        scraping = asyncio.create_task(scrape_all_the_time())
        await until_ready(front)
        jobs = [await submit(front) for _ in range(10)]
        await front.dispatcher.cancel(jobs[-1])
        for one in jobs:
            await ended(front, one)
        scraping.cancel()
        assert not unbalanced
        totals = scrape(front.metrics.page().decode())
        assert (totals["safelight_requests_accepted_total"], totals["safelight_requests_total"]) == (10, 10)
        assert (totals["safelight_requests_retried_total"], totals["safelight_cancelled_total"]) == (1, 1)
        assert totals["safelight_images_total"] == 9
        assert totals["safelight_denoise_step_seconds_count"] == 9 * 4 + 1


async def test_the_page_is_prometheus_text_without_prompts_or_ids(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        await client.post("/v1/images/generations", json={"prompt": "secret-marker"}, headers={"x-key": "key-marker"})
        answer = await client.get("/metrics")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "marker" not in answer.text and "job_" not in answer.text
        assert {f"safelight_{name}" for name in GAUGES} <= set(scrape(answer.text))
