"""What the way through HTTP, the queue, the worker and PNG adds to the bare pipeline call."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import OtherProcesses
from benchmarks.processes import ProcessEnded, free_port, running
from benchmarks.servers import command, timed_image, wait_until_ready
from benchmarks.workload import Workload

# Long enough for the OpenMP threads of the other process to stop spinning.
_PAUSE_S = 0.3


@dataclass(frozen=True, slots=True)
class Overhead:
    """Seconds per image, each alternating with one of the other kind, after one of each that is not counted."""

    size: str
    num_inference_steps: int
    threads: int
    http_s: list[float]
    bare_s: list[float]
    others_share: float

    @property
    def http_median_s(self) -> float:
        return statistics.median(self.http_s)

    @property
    def bare_median_s(self) -> float:
        return statistics.median(self.bare_s)

    @property
    def overhead_ms(self) -> float:
        """Difference of the medians."""
        return 1000 * (self.http_median_s - self.bare_median_s)


def measure_overhead(workload: Workload, pairs: int, folder: Path) -> Overhead:
    """Starts both processes and lets them draw in turns. Raises ``ProcessEnded`` or ``OSError``."""
    port, log = free_port(), folder / "server.log"
    others = OtherProcesses()
    bare_command = ["-m", "benchmarks.bare_pipeline", str(workload.path)]
    with (
        running(command("safelight", workload, port, folder), log) as server,
        running(bare_command, folder / "bare.log", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as bare,
    ):
        wait_until_ready("safelight", server, port, log)
        _read(bare, folder / "bare.log")
        http_s: list[float] = []
        bare_s: list[float] = []
        threads = 0
        for seed in range(pairs + 1):
            time.sleep(_PAUSE_S)
            http_s.append(timed_image("safelight", port, workload, seed))
            time.sleep(_PAUSE_S)
            seconds, threads = _draw_bare(bare, workload, seed, folder / "bare.log")
            bare_s.append(seconds)
    return Overhead(workload.size, workload.num_inference_steps, threads, http_s[1:], bare_s[1:], others.share())


def _draw_bare(bare: subprocess.Popen[str], workload: Workload, seed: int, log: Path) -> tuple[float, int]:
    assert bare.stdin is not None
    bare.stdin.write(json.dumps(workload.pipeline_arguments(seed)) + "\n")
    bare.stdin.flush()
    answer = _read(bare, log)
    return float(answer["seconds"]), int(answer["threads"])


def _read(bare: subprocess.Popen[str], log: Path) -> dict[str, float]:
    assert bare.stdout is not None
    line = bare.stdout.readline()
    if not line:
        raise ProcessEnded(f"the bare pipeline ended:\n{log.read_text(errors='replace')[-2000:]}")
    answer: dict[str, float] = json.loads(line)
    return answer
