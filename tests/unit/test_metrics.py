"""Counters that add up at every scrape."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from safelight import __version__
from safelight.server import loader as loader_module
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
    monkeypatch.setattr(loader_module, "BACK_OFF_S", (0.0, 0.01))
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
        assert all(f"# TYPE safelight_{name} gauge\n" in answer.text for name in GAUGES)


async def test_what_has_not_happened_yet_is_zero_so_that_the_first_time_is_an_increase(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front:
        page = front.metrics.page().decode()
    for sample in (
        'requests_refused_total{reason="queue_full"}',
        'requests_refused_total{reason="rate_limit_exceeded"}',
        'worker_restarts_total{reason="died"}',
        'webhooks_total{result="given_up"}',
        'connections_closed_total{reason="limit"}',
    ):
        assert f"safelight_{sample} 0.0\n" in page, sample


async def test_each_worker_is_in_one_state_and_says_what_its_load_took(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front:
        states = [_states(front)]
        await until_ready(front)
        states.append(_states(front))
        page = front.metrics.page().decode()
    assert states == [["starting"], ["ready"]]
    assert f'safelight_load_seconds{{device="cpu",model="{checkpoint_dir}",phase="weights",worker="0"}} 0.2' in page
    assert f'safelight_build_info{{model="{checkpoint_dir}",version="{__version__}"}} 1.0' in page
    assert "\nsafelight_ready 1.0\n" in page and "\nsafelight_workers 1.0\n" in page


def _states(front: Front) -> list[str]:
    return re.findall(r'safelight_worker_state\{.*state="(\w+)".*\} 1.0', front.metrics.page().decode())


async def test_the_age_of_the_queue_is_that_of_its_oldest_job(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "never_finishes_loading", model=str(checkpoint_dir)) as front:
        assert scrape(front.metrics.page().decode())["safelight_queue_oldest_seconds"] == 0
        oldest = await submit(front)
        await submit(front)
        oldest.created_s -= 100
        assert 100 <= scrape(front.metrics.page().decode())["safelight_queue_oldest_seconds"] < 110


async def test_requests_over_the_rate_limit_count_as_refused(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir), rate_limit=1) as front, serving(front) as client:
        await until_ready(front)
        body = {"prompt": "a", "num_inference_steps": 50, "n": 4}
        answers = [await client.post("/v1/images/generations", json=body) for _ in range(4)]
        refused = [answer.status_code for answer in answers].count(429)
        assert refused > 0, answers[0].text
        page = front.metrics.page().decode()
    assert f'safelight_requests_refused_total{{reason="rate_limit_exceeded"}} {refused}.0' in page
