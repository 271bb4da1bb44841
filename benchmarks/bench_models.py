"""Adapters, switches of models, memory modes and file formats on one card, at full size.

``python -m benchmarks.bench_models --model FOLDER``; README.md of this folder says how to read what it prints. Each
case is a process of its own with its own time limit, and what it finds is written down as it comes.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.adapter_cases import measure_adapters
from benchmarks.engine_session import Size
from benchmarks.format_cases import measure_formats
from benchmarks.memory_cases import measure_mode
from benchmarks.processes import ROOT, ended_by_signals, running, stop
from benchmarks.record import Record
from benchmarks.switch_cases import measure_switch
from safelight.config import EMBEDDED_MODEL
from safelight.engine.options import EngineOptions
from safelight.setting_values import parse_size

_OUTPUT = ROOT / "benchmarks" / "results" / "models.json"
_CASES = {
    "adapters": ("adapters",),
    "switch": ("switch:always", "switch:never"),
    "memory": ("memory:full", "memory:auto@24000", "memory:offload@24000", "memory:auto@15500"),
    "formats": ("formats",),
}
"""By part; ``memory:MODE@MEGABYTES`` is a mode in a process that may use so much of the card."""

_QUICK_CASES = _CASES | {"memory": ("memory:full", "memory:auto@4000")}
_TAIL_LINES = 15


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if every case came to its end."""
    options = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(options)
    if args.case:
        _measure(args)
        return 0
    record = Record(args.output, shlex.join(["python", "-m", "benchmarks.bench_models", *options]))
    record.put(model=args.model, device=args.device)
    cases = [case for part in args.parts for case in (_QUICK_CASES if args.quick else _CASES)[part]]
    with ended_by_signals(), tempfile.TemporaryDirectory(prefix="safelight-bench-", dir=args.scratch) as folder:
        EngineOptions(cache_dir=str(Path(folder) / "cache")).prepare_process()  # for all cases: the first one compiles
        failed = [case for case in cases if not _run(case, args, Path(folder), record)]
    for case in failed:
        print(f"bench_models: {case} failed", file=sys.stderr)
    return int(bool(failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench_models",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default=EMBEDDED_MODEL, help="directory of a checkpoint")
    add("--device", default="cuda:0")
    add("--parts", type=_parts, default=list(_CASES), help=f"some of {','.join(_CASES)}")
    add("--sizes", type=_sizes, default=[(512, 512), (1024, 1024)], help="in pixels, the smaller first")
    add("--steps", type=int, default=8, help="denoising steps of a picture")
    add("--timeout", type=float, default=150.0, help="seconds that one case may take")
    add("--scratch", type=Path, help="where files are written meanwhile: 13 GB for the formats")
    add("--quick", action="store_true", help="small and on the CPU, to see that it works")
    add("--output", type=Path, default=_OUTPUT, help="where the result goes, as JSON")
    add("--case", help="measure this one, in this process")
    add("--folder", type=Path, help="of the case")
    return parser


def _parts(text: str) -> list[str]:
    if unknown := set(text.split(",")) - set(_CASES):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is none of {', '.join(_CASES)}")
    return text.split(",")


def _sizes(text: str) -> list[Size]:
    return [parse_size(part) for part in text.split(",")]


def _run(case: str, args: argparse.Namespace, folder: Path, record: Record) -> bool:
    """One case in a process of its own; whether it came to its end in time. What it printed is recorded."""
    print(f"--- {case}", flush=True)
    log, start_s = folder / "case.log", time.monotonic()
    with running(_command(case, args, folder), log, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        limit = threading.Timer(args.timeout, stop, [process])
        limit.start()
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
                if line.startswith("{"):
                    record.append(case, json.loads(line))
            code = process.wait()
        finally:
            limit.cancel()
    seconds = time.monotonic() - start_s
    record.append(case, {"exit_code": code, "case_s": round(seconds, 1)})
    print(f"--- {case}: exit code {code} after {seconds:.1f} s", flush=True)
    if code:
        print("\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]), flush=True)
    return code == 0


def _command(case: str, args: argparse.Namespace, folder: Path) -> list[str]:
    sizes = [(128, 128), (256, 256)] if args.quick else args.sizes
    return [
        *("-m", "benchmarks.bench_models", "--case", case, "--folder", str(folder), "--model", args.model),
        *("--device", "cpu" if args.quick else args.device, "--steps", str(4 if args.quick else args.steps)),
        *("--sizes", ",".join(f"{width}x{height}" for width, height in sizes), "--timeout", str(args.timeout)),
    ]


def _measure(args: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO)
    kind, _, rest = args.case.partition(":")
    model, device, sizes, steps, folder = args.model, args.device, args.sizes, args.steps, args.folder
    if kind == "adapters":
        measure_adapters(model, device, sizes, steps, folder, _put)
    elif kind == "switch":
        size = "{}x{}".format(*max(sizes))
        measure_switch(rest, model, device, size, steps, folder, args.timeout, _put)
    elif kind == "memory":
        mode, _, limit = rest.partition("@")
        measure_mode(mode, int(limit or 0), model, device, sizes, steps, folder, _put)
    else:
        measure_formats(model, device, folder, _put)


def _put(figures: dict[str, Any]) -> None:
    print(json.dumps(_rounded(figures)), flush=True)


def _rounded(value: Any) -> Any:
    """Four digits after the point are enough for seconds and gigabytes."""
    match value:
        case float():
            return round(value, 4)
        case dict():
            return {name: _rounded(each) for name, each in value.items()}
        case list() | tuple():
            return [_rounded(each) for each in value]
        case _:
            return value


if __name__ == "__main__":
    raise SystemExit(main())
