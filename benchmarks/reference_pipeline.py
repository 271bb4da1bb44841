"""diffusers alone, as its documentation says to use it: ``python -m benchmarks.reference_pipeline MODEL_DIRECTORY``.

Says in one JSON line how long import, weights and the move to the device took. Then reads lines, each a JSON list of
pipeline arguments and ``seed``, makes these images one after the other, and answers with the seconds of each call
``FluxPipeline(...)`` alone, as a JSON list. Ends with its input.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--compile", action="store_true", help="on CUDA: compile_repeated_blocks")
    parser.add_argument("--cache-dir", type=Path, help="where compiled kernels are kept, instead of torch's own place")
    args = parser.parse_args()
    if args.cache_dir:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(args.cache_dir / "inductor")
        os.environ["TRITON_CACHE_DIR"] = str(args.cache_dir / "triton")
    pipeline, facts = _load(args.model, args.device, is_compiled=args.compile)
    _say(facts)
    for line in sys.stdin:
        _say([_draw(pipeline, **arguments) for arguments in json.loads(line)])
        _give_memory_back()


def _load(model: Path, device: str, *, is_compiled: bool) -> tuple[Any, dict[str, Any]]:
    start_s = time.perf_counter()
    import torch
    from diffusers import FluxPipeline

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    imported_s = time.perf_counter()
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    pipeline = FluxPipeline.from_pretrained(model, torch_dtype=dtype, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    read_s = time.perf_counter()
    pipeline.to(device)
    moved_s = time.perf_counter()
    is_compiled = is_compiled and device != "cpu"
    if is_compiled:
        pipeline.transformer.compile_repeated_blocks(fullgraph=True)
    phase_seconds = {"import": imported_s - start_s, "weights": read_s - imported_s, "to_device": moved_s - read_s}
    facts = {"device": device, "dtype": str(dtype).removeprefix("torch."), "is_compiled": is_compiled}
    return pipeline, facts | {"phase_seconds": phase_seconds}


def _draw(pipeline: Any, seed: int, **arguments: Any) -> float:
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    start_s = time.perf_counter()
    pipeline(**arguments, generator=generator)
    return time.perf_counter() - start_s


def _give_memory_back() -> None:
    """The server on the same card needs it while this process waits."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _say(facts: Any) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
