"""The two other ways to write a FLUX server, for comparison: ``python -m benchmarks.alternatives thread|naive``.

Both are one process with FastAPI and uvicorn that serve ``GET /livez`` and ``POST /generate`` and use diffusers'
``FluxPipeline`` as its documentation does. They differ in one thing:

- ``thread``: everything that blocks runs in a ``ThreadPoolExecutor(max_workers=1)`` of the server's process, and the
  lifespan does not wait for the load;
- ``naive``: everything runs directly in the lifespan and in the route, on the event loop.

Both print ``MARK <seconds since the epoch> <phase>`` on stderr where a phase begins.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel

_WARMUP_STEPS = 2


class GenerateRequest(BaseModel):
    """One image; sizes in pixels. The benchmark always gives all members, so that each server does the same work."""

    prompt: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    max_sequence_length: int
    seed: int


@dataclass
class Model:
    """The pipeline, once it is loaded and warm. All its methods block."""

    path: str
    warmup: GenerateRequest
    pipeline: Any = None

    def load(self) -> None:
        """Imports the libraries, reads the weights, moves them to the device, and makes a warm-up image."""
        mark("import")
        import torch
        from diffusers import FluxPipeline

        mark("load")
        pipeline = FluxPipeline.from_pretrained(self.path, torch_dtype=torch.float32, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.to("cpu")
        mark("warmup")
        draw(pipeline, self.warmup)
        self.pipeline = pipeline
        mark("ready")

    def generate(self, request: GenerateRequest) -> bytes:
        """One image as PNG. Raises HTTP 503 until it is loaded."""
        if self.pipeline is None:
            raise HTTPException(503, "the model is not loaded yet")
        return draw(self.pipeline, request)


def mark(phase: str) -> None:
    """Says when a phase begins."""
    print(f"MARK {time.time():.6f} {phase}", file=sys.stderr, flush=True)


def draw(pipeline: Any, request: GenerateRequest) -> bytes:
    """One pipeline call, and its image as PNG."""
    import torch

    arguments = request.model_dump(exclude={"seed"})
    image = pipeline(**arguments, generator=torch.Generator("cpu").manual_seed(request.seed)).images[0]
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def thread_app(model: Model) -> FastAPI:
    """The fix of the design note: one thread for everything that blocks."""
    executor = ThreadPoolExecutor(max_workers=1)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.get_running_loop().run_in_executor(executor, model.load)
        yield
        await loading
        executor.shutdown()

    app = _app(lifespan)

    @app.post("/generate")
    async def generate(request: GenerateRequest) -> Response:
        png = await asyncio.get_running_loop().run_in_executor(executor, model.generate, request)
        return Response(png, media_type="image/png")

    return app


def naive_app(model: Model) -> FastAPI:
    """The bug of the design note: the loop itself loads and draws."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        model.load()
        yield

    app = _app(lifespan)

    @app.post("/generate")
    async def generate(request: GenerateRequest) -> Response:
        return Response(model.generate(request), media_type="image/png")

    return app


def _app(lifespan: Any) -> FastAPI:
    app = FastAPI(lifespan=lifespan)

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    return app


def main() -> None:
    """Entry point of the server's process."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("kind", choices=("thread", "naive"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True, help="checkpoint directory in diffusers layout")
    parser.add_argument("--request", required=True, help="a GenerateRequest as JSON: what to warm up with")
    args = parser.parse_args()
    request = GenerateRequest.model_validate_json(args.request)
    model = Model(args.model, request.model_copy(update={"num_inference_steps": _WARMUP_STEPS}))
    app = thread_app(model) if args.kind == "thread" else naive_app(model)
    uvicorn.run(app, host="127.0.0.1", port=args.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
