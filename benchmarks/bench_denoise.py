"""Denoising steps of a full-size FLUX.1-dev with random weights on one CUDA card: Safelight against diffusers.

``python -m benchmarks.bench_denoise``; README.md of this folder says how to read what it prints. Each figure is the
time of a step in a row of steps that lasts seconds, since a card that draws all the power it may slows down.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel

from benchmarks.floors import floor_calls, step_flops
from benchmarks.processes import ROOT
from benchmarks.random_checkpoint import MODELS
from benchmarks.record import Record
from safelight.engine.flux.graphs import GraphedForward
from safelight.engine.flux.kernels import TritonOperations
from safelight.engine.flux.transformer import LeanTransformer
from safelight.engine.flux.vae import accelerate

_OUTPUT = ROOT / "benchmarks" / "results" / "denoise.json"
_TEXT = 512
_GRAPH_TOKENS = 5000
_PIXELS_PER_TOKEN = 16
_FIRST_USES = 3

Inputs = dict[str, Any]


def main() -> None:
    """Prints and records one figure after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="flux-dev")
    parser.add_argument("--sizes", type=_numbers, default=[1024, 768, 512, 256], help="sides in pixels")
    parser.add_argument("--rows", type=_numbers, default=[1, 2, 4, 8], help="pictures in a step")
    parser.add_argument("--seconds", type=float, default=1.5, help="how long each row of steps lasts")
    parser.add_argument("--compiled", type=_numbers, default=[1024, 512, 256], help="sizes also compiled, one row")
    parser.add_argument("--parts", default="vae,eager,bf16,compiled,fp8", help="what to measure")
    parser.add_argument("--output", type=Path, default=_OUTPUT)
    args = parser.parse_args()
    record = Record(args.output, shlex.join(["python", "-m", "benchmarks.bench_denoise", *sys.argv[1:]]))
    record.put(model=args.model, text_tokens=_TEXT)
    with torch.inference_mode():
        _Denoising(args, record).measure()


class _Denoising:
    """All figures of one run, on one card."""

    def __init__(self, args: argparse.Namespace, record: Record) -> None:
        self._args = args
        self._record = record
        self._expected: dict[tuple[int, int], torch.Tensor] = {}

    def measure(self) -> None:
        parts = self._args.parts.split(",")
        if "vae" in parts:
            self._vae()
        if {"eager", "bf16", "compiled"} & set(parts):
            self._sixteen_bits(parts)
        if "fp8" in parts:
            model = _random_transformer(self._args.model)
            self._ours(LeanTransformer(model, TritonOperations(float8=True)), model.config, "fp8")

    def _sixteen_bits(self, parts: Sequence[str]) -> None:
        model = _random_transformer(self._args.model)
        self._expected = {(size, 1): model(**_inputs(size, 1))[0] for size in self._args.sizes}
        if "eager" in parts:
            self._eager(model)
        if "bf16" in parts:
            self._ours(LeanTransformer(model, TritonOperations()), model.config, "bf16")
        if "compiled" in parts:
            self._compiled(model)

    def _eager(self, model: Any) -> None:
        for size in self._args.sizes:
            for rows in self._args.rows:
                inputs = _inputs(size, rows)
                self._put("diffusers eager", size, rows, self._seconds(model, **inputs), model.config)

    def _compiled(self, model: Any) -> None:
        """One row: a shape of its own costs 13 to 22 seconds, and the ninth ends in ``recompile_limit``."""
        model.compile_repeated_blocks(fullgraph=True)
        for size in self._args.compiled:
            inputs = _inputs(size, 1)
            start_s = time.perf_counter()
            model(**inputs)
            torch.cuda.synchronize()
            compile_s = round(time.perf_counter() - start_s, 1)
            seconds = self._seconds(model, **inputs)
            self._put("diffusers compiled", size, 1, seconds, model.config, compile_s=compile_s)

    def _ours(self, transformer: LeanTransformer, config: Any, precision: str) -> None:
        forward = GraphedForward(transformer, _GRAPH_TOKENS)
        for size in self._args.sizes:
            for rows in self._args.rows:
                inputs = _lean_inputs(transformer, _inputs(size, rows), size)
                start_s = time.perf_counter()
                found = forward(*inputs)
                torch.cuda.synchronize()
                extra: dict[str, Any] = {"first_s": round(time.perf_counter() - start_s, 2)}
                if (expected := self._expected.get((size, rows))) is not None:
                    error = (found.float() - expected.float()).norm() / expected.float().norm()
                    extra["relative_error"] = round(float(error), 4)
                seconds = self._seconds(forward, *inputs)
                extra["floor_ms"] = self._floor(config, size, rows, precision)
                self._put(f"Safelight {precision}", size, rows, seconds, config, **extra)

    def _floor(self, config: Any, size: int, rows: int, precision: str) -> float | None:
        """Only where a step fills the card: of small ones a graph of bare products is no honest floor."""
        if rows != 1 or size < 512:
            return None
        run = floor_calls(config, rows, _TEXT, (size // _PIXELS_PER_TOKEN) ** 2, float8=precision == "fp8")
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return round(self._seconds(graph.replay) * 1e3, 2)

    def _put(self, what: str, size: int, rows: int, seconds: float, config: Any, **extra: Any) -> None:
        teraflops = step_flops(config, rows, _TEXT, (size // _PIXELS_PER_TOKEN) ** 2) / seconds / 1e12
        figures = {"what": what, "size": size, "rows": rows, "step_ms": round(seconds * 1e3, 2)}
        figures |= {"ms_per_row": round(seconds * 1e3 / rows, 2), "teraflops": round(teraflops), **extra}
        self._record.append("steps", figures)
        print(" ".join(f"{name} {value}" for name, value in figures.items()), flush=True)

    def _vae(self) -> None:
        """Decoding as diffusers does it by itself, and as the engine does."""
        with torch.device("cuda"):
            vae = AutoencoderKL.from_config(MODELS[self._args.model]["vae"]).to(torch.bfloat16).eval()
        latents = {size: torch.randn(1, 16, size // 8, size // 8, **_PLACE) for size in self._args.sizes}
        eager = {size: self._seconds(vae.decode, z) for size, z in latents.items()}
        vae.to(memory_format=torch.channels_last)
        accelerate(vae.decoder)
        for size, z in latents.items():
            ordered = z.contiguous(memory_format=torch.channels_last)
            ours = self._seconds(vae.decode, ordered)
            figures = {"size": size, "diffusers_ms": round(eager[size] * 1e3, 1), "safelight_ms": round(ours * 1e3, 1)}
            self._record.append("vae", figures)
            print("VAE", figures, flush=True)

    def _seconds(self, call: Callable[..., object], *args: Any, **named: Any) -> float:
        """The median over blocks of a few calls, of the second half of the time."""
        for _ in range(_FIRST_USES):  # compile, record
            call(*args, **named)
        torch.cuda.synchronize()
        end_s = time.perf_counter() + self._args.seconds
        half_s = end_s - self._args.seconds / 2
        blocks: list[float] = []
        while (start_s := time.perf_counter()) < end_s or not blocks:
            for _ in range(4):
                call(*args, **named)
            torch.cuda.synchronize()
            if start_s > half_s or time.perf_counter() > end_s:
                blocks.append((time.perf_counter() - start_s) / 4)
        return statistics.median(blocks)


_PLACE: dict[str, Any] = {"dtype": torch.bfloat16, "device": "cuda"}


def _random_transformer(name: str) -> Any:
    torch.manual_seed(0)
    config = {key: value for key, value in MODELS[name]["transformer"].items() if not key.startswith("_")}
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = FluxTransformer2DModel(**config)
    torch.set_default_dtype(torch.float32)
    return model.eval().requires_grad_(False)


def _inputs(size: int, rows: int) -> Inputs:
    """As diffusers' forward takes them."""
    side = size // _PIXELS_PER_TOKEN
    torch.manual_seed(size + rows)
    places = torch.zeros(side * side, 3, device="cuda")
    places[:, 1] = torch.arange(side, device="cuda").repeat_interleave(side)
    places[:, 2] = torch.arange(side, device="cuda").repeat(side)
    return {
        "hidden_states": torch.randn(rows, side * side, 64, **_PLACE),
        "encoder_hidden_states": torch.randn(rows, _TEXT, 4096, **_PLACE),
        "pooled_projections": torch.randn(rows, 768, **_PLACE),
        "timestep": torch.full((rows,), 0.5, **_PLACE),
        "guidance": torch.full((rows,), 3.5, device="cuda"),
        "img_ids": places,
        "txt_ids": torch.zeros(_TEXT, 3, device="cuda"),
        "return_dict": False,
    }


def _lean_inputs(transformer: LeanTransformer, inputs: Inputs, size: int) -> tuple[Any, ...]:
    modulations = [
        transformer.modulations(torch.tensor([500.0]), 3.5, pooled[None]) for pooled in inputs["pooled_projections"]
    ]
    side = size // _PIXELS_PER_TOKEN
    text = torch.stack([transformer.project_text(embeds) for embeds in inputs["encoder_hidden_states"]])
    return inputs["hidden_states"], text, torch.cat(modulations), transformer.rope(_TEXT, (side, side))


def _numbers(text: str) -> Sequence[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
