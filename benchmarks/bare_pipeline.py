"""The pipeline without a server, in a process of its own: ``python -m benchmarks.bare_pipeline MODEL_DIRECTORY``.

Reads one JSON object of pipeline arguments and ``seed`` per line, makes the image, and answers with one JSON line:
the seconds of the call ``FluxPipeline(...)`` alone, and torch's number of threads. Ends with its input.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from diffusers import FluxPipeline


def main() -> None:
    """Entry point of the process; prints ``{"ready": true}`` once the model is loaded."""
    pipeline = FluxPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        arguments = json.loads(line)
        generator = torch.Generator("cpu").manual_seed(arguments.pop("seed"))
        start = time.perf_counter()
        pipeline(**arguments, generator=generator)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "threads": torch.get_num_threads()}), flush=True)


if __name__ == "__main__":
    main()
