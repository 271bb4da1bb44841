"""Writes a FLUX checkpoint of random weights in diffusers layout: ``python -m benchmarks.random_checkpoint FOLDER``.

It loads, weighs and computes as FLUX.1-dev does, and draws noise. Only the tokenizers are small: those of the embedded
model. With a CUDA device the numbers come from there.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from safelight.checkpoint import open_checkpoint
from safelight.config import EMBEDDED_MODEL
from safelight.engine import pipelines
from safelight.engine.weights import make_empty

Shapes = dict[str, list[int]]

_EMBEDDED = open_checkpoint(EMBEDDED_MODEL).path
_COPIED = ("tokenizer", "tokenizer_2", "scheduler")
_DTYPE = torch.bfloat16
_STANDARD_DEVIATION = 0.02
_THREADS = 4

FLUX_DEV: dict[str, dict[str, Any]] = {
    "transformer": {
        "_class_name": "FluxTransformer2DModel",
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
        "axes_dims_rope": [16, 56, 56],
    },
    "text_encoder_2": {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "dtype": "bfloat16",
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
        "vocab_size": 32128,
        "is_encoder_decoder": False,
        "tie_word_embeddings": False,
    },
    "text_encoder": {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "dtype": "bfloat16",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "projection_dim": 768,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        # The embedded tokenizer's; where eos stands, CLIP reads off the prompt's summary.
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 16,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}
"""``config.json`` of each component with weights."""

SMALL_CHANGES: dict[str, dict[str, Any]] = {
    "transformer": {"num_layers": 2, "num_single_layers": 4, "num_attention_heads": 8, "joint_attention_dim": 1024},
    "text_encoder_2": {"d_model": 1024, "d_ff": 2816, "num_layers": 4, "num_heads": 16},
    "text_encoder": {"num_hidden_layers": 4},
    "vae": {},
}
SMALL = {name: config | SMALL_CHANGES[name] for name, config in FLUX_DEV.items()}
MODELS = {"flux-dev": FLUX_DEV, "small": SMALL}

# As many shards as FLUX.1-dev has: three of the transformer, two of T5.
_SHARDS = {"transformer": 3, "text_encoder_2": 2}


def write_checkpoint(folder: Path, model: str) -> None:
    """Writes all of it, replacing what has the same name. ``model`` is one of ``MODELS``."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(_EMBEDDED / "model_index.json", folder)
    for name in _COPIED:
        shutil.copytree(_EMBEDDED / name, folder / name, dirs_exist_ok=True)
    _write_json(folder / "safelight.json", {"id": f"safelight/random-{model}", "title": f"Random {model}"})
    with ThreadPoolExecutor(_THREADS) as threads:
        work = [
            threads.submit(_write_shard, path, shapes)
            for name, config in MODELS[model].items()
            for path, shapes in _plan(folder / name, config)
        ]
        for shard in work:
            shard.result()


def _plan(folder: Path, config: dict[str, Any]) -> Iterator[tuple[Path, Shapes]]:
    """Writes the component's JSON files and yields its shards with the shapes of their tensors."""
    folder.mkdir(exist_ok=True)
    _write_json(folder / "config.json", config)
    shapes = shapes_of(folder, config)
    file_name = "diffusion_pytorch_model" if "_class_name" in config else "model"
    count = _SHARDS.get(folder.name, 1)
    if count == 1:
        yield folder / f"{file_name}.safetensors", shapes
        return
    shards = _split(shapes, count)
    names = [f"{file_name}-{index + 1:05}-of-{count:05}.safetensors" for index in range(count)]
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": sum(map(_size_bytes, shapes.values()))}, "weight_map": weight_map}
    _write_json(folder / f"{file_name}.safetensors.index.json", index)
    yield from ((folder / name, shard) for name, shard in zip(names, shards, strict=True))


def shapes_of(folder: Path, config: dict[str, Any]) -> Shapes:
    """By the names that the published files use: tied weights once, CLIP's below ``text_model``."""
    import diffusers
    import transformers

    diffusers_class = config.get("_class_name")
    if diffusers_class:
        module = make_empty(getattr(diffusers, diffusers_class), folder)
    else:
        module = make_empty(getattr(transformers, config["architectures"][0]), folder)
    prefix = "text_model." if config.get("model_type") == "clip_text_model" else ""
    return {prefix + name.removeprefix(prefix): list(tensor.shape) for name, tensor in module.named_parameters()}


def _split(shapes: Shapes, count: int) -> list[Shapes]:
    """Shards of about the same size, tensors in order."""
    limit_bytes = sum(map(_size_bytes, shapes.values())) / count
    shards: list[Shapes] = [{} for _ in range(count)]
    done_bytes = 0
    for name, shape in shapes.items():
        shards[min(int(done_bytes / limit_bytes), count - 1)][name] = shape
        done_bytes += _size_bytes(shape)
    return shards


def _write_shard(path: Path, shapes: Shapes) -> None:
    """One tensor after the other, so that hardly more than the largest one is in memory."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + _size_bytes(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    generator = torch.Generator("cuda" if torch.cuda.is_available() else "cpu")
    generator.manual_seed(zlib.crc32(f"{path.parent.name}/{path.name}".encode()))
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name, shape in shapes.items():
            file.write(_random(name, shape, generator).view(torch.uint8).cpu().numpy().data)
    print(f"{path.parent.name}/{path.name}: {path.stat().st_size / 1e9:.2f} GB", flush=True)


def _random(name: str, shape: list[int], generator: torch.Generator) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=_DTYPE, device=generator.device)
    is_norm = len(shape) == 1 and name.endswith(".weight")
    return tensor.fill_(1) if is_norm else tensor.normal_(0, _STANDARD_DEVIATION, generator=generator)


def _size_bytes(shape: list[int]) -> int:
    return math.prod(shape) * _DTYPE.itemsize


def _write_json(path: Path, members: dict[str, Any]) -> None:
    path.write_text(json.dumps(members, indent=2) + "\n")


def main() -> None:
    """Writes the checkpoint and says how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=MODELS, default="flux-dev")
    args = parser.parse_args()
    pipelines.import_libraries()
    start_s = time.perf_counter()
    write_checkpoint(args.folder, args.model)
    print(f"{args.folder}: {time.perf_counter() - start_s:.1f} s")


if __name__ == "__main__":
    main()
