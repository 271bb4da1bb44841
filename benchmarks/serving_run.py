"""One run of ``bench_serving``: both sides are warmed up, then measured; every figure is printed and kept at once."""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import serving_lines
from benchmarks.live_server import LiveServer
from benchmarks.load_client import send_all
from benchmarks.neighbours import Neighbours
from benchmarks.record import Record
from benchmarks.reference import Reference
from benchmarks.serving_figures import measure_burst, measure_overhead, measure_rate, measure_reference
from benchmarks.traffic import DEFAULT_SIZE, Asked, Traffic
from benchmarks.workload import Workload

# Long enough for the OpenMP threads of the process that drew last to stop spinning.
_PAUSE_S = 0.3
_QUIET_SHARE = 0.05
_PARAMS = ("width", "height", "num_inference_steps")


class ServingRun:
    """``args`` are the options of ``bench_serving``. Raises ``OSError`` or ``ProcessEnded``."""

    def __init__(
        self, args: argparse.Namespace, server: LiveServer, reference: Reference | None, record: Record
    ) -> None:
        self._args = args
        self._server = server
        self._reference = reference
        self._record = record
        self._neighbours = Neighbours()
        self._traffic = Traffic(args.sizes, args.steps, args.prompts, args.preview_share, args.seed)

    def measure(self) -> None:
        """All that the options ask for."""
        self._warm_up()
        self._neighbours.share()
        for size in self._args.sizes if self._args.overhead else ():
            self._measure_overhead(size)
        for size, count in itertools.product(self._args.sizes, self._args.burst):
            self._measure_bursts(size, count)
        for rate in self._args.rates:
            self._measure_rate(rate)

    def _warm_up(self) -> None:
        plan = self._traffic.at_once(len(self._args.sizes))
        params = [self._server.draw(asked).params for asked in plan]
        for size in self._args.sizes:
            send_all(self._server.url, self._traffic.at_once(self._args.warmup, [size]), self._args.timeout)
        if self._reference:
            self._draw_reference([*plan, *plan])  # compiled for a second size, the first one's code is made anew
            self._record.put(reference=self._reference.facts)
        status = self._server.status()
        self._record.put(
            model=status["model"],
            devices=[worker["device"] for worker in status["workers"]],
            params=[{name: each[name] for name in _PARAMS} for each in params],
        )

    def _measure_overhead(self, size: str) -> None:
        plan = self._traffic.at_once(self._args.overhead, [size])
        figures = {"size": size} | measure_overhead(self._server, plan)
        self._keep("overhead", figures, serving_lines.overhead_line(figures))

    def _measure_rate(self, rate: float) -> None:
        seconds = self._args.seconds
        plan = self._traffic.poisson(rate, seconds)
        figures = {"rate": rate} | measure_rate(self._server, plan, seconds, self._args.timeout)
        self._keep("rates", figures, serving_lines.rate_line(figures))

    def _measure_bursts(self, size: str, count: int) -> None:
        runs = [self._measure_burst(size, count) for _ in range(self._args.repeats)]
        served = statistics.median(run["images_per_s"] for run in runs)
        figures: dict[str, Any] = {"size": size, "count": count, "repeats": len(runs)}
        figures |= {"images_per_s": served, "ratio": None}
        if self._reference:
            alone = statistics.median(run["reference"]["images_per_s"] for run in runs)
            figures |= {"reference_images_per_s": alone, "ratio": round(served / alone, 3)}
        self._record.append("comparisons", figures)
        print(serving_lines.comparison_line(figures), flush=True)

    def _measure_burst(self, size: str, count: int) -> dict[str, Any]:
        plan = self._traffic.at_once(count, [size])
        time.sleep(_PAUSE_S)
        figures: dict[str, Any] = {"size": size, "count": count} | measure_burst(self._server, plan, self._args.timeout)
        time.sleep(_PAUSE_S)
        figures["reference"] = self._draw_reference(plan)
        self._keep("bursts", figures, serving_lines.burst_line(figures))
        return figures

    def _draw_reference(self, plan: Sequence[Asked]) -> dict[str, Any] | None:
        """The same pictures, with the same seeds; ``None`` without a reference."""
        if self._reference is None:
            return None
        workloads = {asked.size: self._workload(asked.size) for asked in plan}
        arguments = [workloads[asked.size].pipeline_arguments(asked.seed) | {"prompt": asked.prompt} for asked in plan]
        return measure_reference(self._reference, arguments)

    def _workload(self, size: str) -> Workload:
        return Workload.of(self._args.model, None if size == DEFAULT_SIZE else size, self._args.steps)

    def _keep(self, section: str, figures: dict[str, Any], line: str) -> None:
        others_share = self._neighbours.share()
        print(line, flush=True)
        if self._args.url:  # the server itself is one of the others then
            return self._record.append(section, figures)
        self._record.append(section, figures | {"others_share": others_share})
        if others_share > _QUIET_SHARE:
            print(f"  do not trust this: other processes took {others_share:.0%} of the cores", flush=True)
