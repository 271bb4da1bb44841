"""Seconds from the page cache to a pipeline on the device: Safelight's loader against diffusers' own two ways.

``python -m benchmarks.bench_load --model FOLDER --device cuda:0``; each load in a process of its own, which has
imported the libraries and woken the device before its clock starts. ``benchmarks.random_checkpoint`` makes a folder.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT
from benchmarks.record import Record
from safelight.checkpoint import Checkpoint, open_checkpoint
from safelight.engine import pipelines
from safelight.engine.load_report import LoadReport

_OUTPUT = ROOT / "benchmarks" / "results" / "load.json"
_DTYPE = "bfloat16"
_PAGE_BYTES = 4096
_READ_BYTES = 64 * 2**20


def by_safelight(folder: str, device: str) -> Any:
    """As a worker does it; ``phases`` says where its time went."""
    checkpoint = open_checkpoint(folder)
    report = LoadReport(len(checkpoint.components), checkpoint.weight_bytes, lambda _: None, threading.Event())
    pipeline = pipelines.build_pipeline(checkpoint, device, _DTYPE, report)
    print(json.dumps({"phases": {name: round(seconds, 3) for name, seconds in report.phase_seconds.items()}}))
    return pipeline


def by_to(folder: str, device: str) -> Any:
    """As most programs do it."""
    import torch
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(folder, dtype=getattr(torch, _DTYPE), local_files_only=True)
    return pipeline.to(device)


def by_device_map(folder: str, device: str) -> Any:
    """As diffusers does it fastest."""
    import torch
    from diffusers import FluxPipeline

    torch.cuda.set_device(device)
    return FluxPipeline.from_pretrained(folder, dtype=getattr(torch, _DTYPE), local_files_only=True, device_map="cuda")


WAYS: dict[str, Callable[[str, str], Any]] = {
    "safelight": by_safelight,
    "from_pretrained + to": by_to,
    "from_pretrained, device_map": by_device_map,
}


def load_once(way: str, folder: str, device: str) -> None:
    """What the process of one load does; prints the figures as the last line."""
    pipelines.import_libraries()
    import torch

    torch.zeros(1, device=device).sum().item()
    start_s = time.perf_counter()
    pipeline = WAYS[way](folder, device)
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    else:
        _touch(pipeline)
    seconds = time.perf_counter() - start_s
    print(json.dumps({"seconds": round(seconds, 3), "checksum": _checksum(pipeline)}), flush=True)


def _tensors(pipeline: Any) -> list[Any]:
    import torch

    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return [tensor for module in modules for tensor in module.parameters()]


def _touch(pipeline: Any) -> None:
    """On the CPU the libraries only map the files, and the first step would read them; this is that, a byte a page."""
    import torch

    for tensor in _tensors(pipeline):
        tensor.data.view(-1).view(torch.uint8)[::_PAGE_BYTES].sum()


def _checksum(pipeline: Any) -> int:
    """Equal for equal weights: the sum of all of them as integers."""
    import torch

    return sum(int(tensor.data.view(-1).view(torch.int16).sum(dtype=torch.int64)) for tensor in _tensors(pipeline))


def _in_own_process(way: str, folder: str, device: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.bench_load", "--model", folder, "--device", device, "--way", way]
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = {}
    for line in process.stdout.splitlines():
        if line.startswith("{"):
            figures |= json.loads(line)
    return figures


def _fill_page_cache(checkpoint: Checkpoint) -> None:
    for component in checkpoint.components:
        for path in component.files:
            with path.open("rb", buffering=0) as file:
                while file.read(_READ_BYTES):
                    pass


def compare(folder: str, device: str, repeats: int, record: Record) -> None:
    """Loads in turn, prints each figure, writes all of them down. Raises ``SystemExit`` if the weights differ."""
    checkpoint = open_checkpoint(folder)
    record.put(model=checkpoint.card.id, weight_bytes=checkpoint.weight_bytes, device=device, dtype=_DTYPE)
    _fill_page_cache(checkpoint)
    ways = [way for way in WAYS if device.startswith("cuda") or way != "from_pretrained, device_map"]
    loads: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way in ways:
            figures = _in_own_process(way, folder, device)
            loads[way].append(figures)
            rate = checkpoint.weight_bytes / figures["seconds"] / 1e9
            print(f"{way:28} {figures['seconds']:7.2f} s {rate:6.1f} GB/s {figures.get('phases', '')}", flush=True)
            record.put(loads=loads)
    if len({figures["checksum"] for of_way in loads.values() for figures in of_way}) != 1:
        raise SystemExit("the weights differ")
    _conclude(loads, checkpoint.weight_bytes, record)


def _conclude(loads: dict[str, list[dict[str, Any]]], weight_bytes: int, record: Record) -> None:
    median_s = {way: statistics.median(figures["seconds"] for figures in of_way) for way, of_way in loads.items()}
    ratio = {way: round(median_s["safelight"] / seconds, 3) for way, seconds in median_s.items() if way != "safelight"}
    for way, seconds in median_s.items():
        print(f"median of {way:28} {seconds:7.2f} s {weight_bytes / seconds / 1e9:6.1f} GB/s")
    for way, share in ratio.items():
        print(f"safelight takes {share:.2f} of the time of {way}")
    gb_per_s = {way: round(weight_bytes / seconds / 1e9, 2) for way, seconds in median_s.items()}
    record.put(median_s=median_s, gb_per_s=gb_per_s, time_as_share_of=ratio)


def main() -> None:
    """Compares, or with ``--way`` loads once."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True, help="directory of a checkpoint")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=_OUTPUT)
    parser.add_argument("--way", choices=WAYS, help="load once, this way, in this process")
    args = parser.parse_args()
    if args.way:
        load_once(args.way, args.model, args.device)
        return
    command = shlex.join(["python", "-m", "benchmarks.bench_load", *sys.argv[1:]])
    compare(args.model, args.device, args.repeats, Record(args.output, command))


if __name__ == "__main__":
    main()
