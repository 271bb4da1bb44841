"""A checkpoint directory in diffusers layout without a model: right files, a few bytes of weights, no torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

MODEL_INDEX: dict[str, Any] = {
    "_class_name": "FluxPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
CARD: dict[str, Any] = {
    "id": "test/tiny",
    "title": "Tiny",
    "default_width": 64,
    "default_height": 64,
    "min_size": 32,
    "max_size": 512,
    "default_num_inference_steps": 4,
    "max_num_inference_steps": 50,
    "max_sequence_length": 64,
}
TRANSFORMER_FILE = "diffusion_pytorch_model.safetensors"
TENSOR_BYTES = 16
SHARDS = 2
WEIGHT_BYTES = TENSOR_BYTES * (SHARDS + 3)


def write_checkpoint(folder: Path, *, card: dict[str, Any] | None = CARD, guidance_embeds: bool = True) -> Path:
    """The transformer comes in two shards, everything else in one file. Without ``card`` there is no safelight.json."""
    for name in ("scheduler", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "transformer", "vae"):
        (folder / name).mkdir(parents=True)
        write_json(folder / name / "config.json", {})
    write_json(folder / "model_index.json", MODEL_INDEX)
    write_json(folder / "transformer" / "config.json", {"guidance_embeds": guidance_embeds})
    write_safetensors(folder / "text_encoder" / "model.safetensors", "F16")
    write_safetensors(folder / "text_encoder_2" / "model.safetensors", "BF16")
    write_safetensors(folder / "vae" / TRANSFORMER_FILE, "F32")
    shards = [f"diffusion_pytorch_model-{number:05}-of-{SHARDS:05}.safetensors" for number in range(1, SHARDS + 1)]
    for number, shard in enumerate(shards):
        write_safetensors(folder / "transformer" / shard, "BF16", name=f"block.{number}")
    write_json(
        folder / "transformer" / f"{TRANSFORMER_FILE}.index.json",
        {"metadata": {}, "weight_map": {f"block.{number}": shard for number, shard in enumerate(shards)}},
    )
    if card is not None:
        write_json(folder / "safelight.json", card)
    return folder


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def write_safetensors(path: Path, dtype: str, name: str = "weight") -> None:
    """One tensor of ``TENSOR_BYTES`` bytes."""
    tensor = {"dtype": dtype, "shape": [TENSOR_BYTES // 2], "data_offsets": [0, TENSOR_BYTES]}
    path.write_bytes(safetensors_bytes({"__metadata__": {"format": "pt"}, name: tensor}, bytes(TENSOR_BYTES)))


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    """A file with this header, right or wrong."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data
