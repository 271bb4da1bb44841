"""The claim: kill -9 any process at any moment, and no accepted job is lost or done twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.campaign import Campaign


@pytest.mark.parametrize("seed", [1])
def test_ten_kills_over_a_hundred_jobs(seed: int, tmp_path: Path) -> None:
    report = Campaign.on(tmp_path, seed, 100).run(worker_kills=5, server_kills=5)
    assert (report.accepted, report.worker_kills, report.server_kills) == (100, 5, 5)
    assert report.is_clean, report


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_kills_over_a_thousand_jobs(tmp_path: Path) -> None:
    report = Campaign.on(tmp_path, 20261123, 1000).run(worker_kills=50, server_kills=50)
    assert (report.accepted, report.worker_kills, report.server_kills) == (1000, 50, 50)
    assert report.is_clean, report
