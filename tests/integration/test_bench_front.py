"""The benchmark of the front and the check of the simulation run; their figures are for quiet machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import bench_front
from benchmarks.check_simulation import Asked, check
from benchmarks.front_scenarios import JOB_STREAM, STATUS_STREAM, followers, workers
from benchmarks.measured_front import Fleet


def test_light_workers_are_workers_to_the_front() -> None:
    found = workers(Fleet(workers=5, step_s=0.001), idle_s=0.1, count=30, steps=3)
    assert found["jobs"]["statuses"] == {"201": 30}
    assert found["jobs"]["cpu_ms"] > 0 and found["rss_mb"] > 20
    assert found["worker_mb"] < 2, "a worker's process is a sleeping cat"


@pytest.mark.parametrize("stream", [JOB_STREAM, STATUS_STREAM])
def test_every_follower_is_told_of_every_step(stream: str) -> None:
    found = followers(stream, count=12, step_s=0.3, steps=4)
    assert found["told"] <= 12 * 4
    assert found["told"] == 12 * 4 or stream == STATUS_STREAM, "changes that come fast are seen in one event"
    assert 0 < found["delay_p50_ms"] <= found["delay_p99_ms"]


def test_a_real_run_and_its_simulation_are_compared() -> None:
    found = check(Asked(workers=2, load=0.5, jobs=12, step_s=0.02, steps=4, rows=1))
    assert set(found["errors"]) == {"jobs_per_s", "mean_s", "p95_s"}
    assert found["simulated"]["mean_s"] >= 4 * 0.02 <= found["real"]["mean_s"]


def test_a_file_keeps_what_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "front.json"
    for number in (1, 2):
        measured = {name: lambda _args, number=number: iter([[{"number": number}]]) for name in bench_front.SCENARIOS}
        monkeypatch.setattr(bench_front, "_SCENARIOS", measured)
        names = "submits,history" if number == 1 else "history,workers"
        assert bench_front.main(["--scenarios", names, "--add", "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    numbers = {name: [figures["number"] for figures in found.get(name, [])] for name in bench_front.SCENARIOS}
    assert numbers == {"submits": [1], "waiting": [], "history": [2], "workers": [2], "followers": []}
    assert ["--scenarios submits,history" in command for command in found["earlier_commands"]] == [True]


@pytest.mark.slow
def test_every_scenario_runs_at_small_sizes(tmp_path: Path) -> None:
    output = tmp_path / "front.json"
    assert bench_front.main(["--quick", "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert all(found[scenario] for scenario in bench_front.SCENARIOS)
    assert found["submits"][0]["statuses"].keys() == {"201"}
    assert found["fsync_ms"] > 0
