"""The random checkpoint of the benchmarks: a model like any other, whose pictures are noise but no NaN."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import random_checkpoint
from safelight.checkpoint import open_checkpoint
from safelight.engine import components, pipelines
from safelight.engine.load_report import LoadReport

TINY: dict[str, dict[str, Any]] = {
    "transformer": {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 1, "joint_attention_dim": 64},
    "text_encoder_2": {"d_model": 64, "d_ff": 64, "num_layers": 1, "num_heads": 1},
    "text_encoder": {"num_hidden_layers": 1, "vocab_size": 100},
    "vae": {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1},
}


def test_it_loads_the_fast_way_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrunk = {name: config | TINY[name] for name, config in random_checkpoint.FLUX_DEV.items()}
    monkeypatch.setitem(random_checkpoint.MODELS, "tiny", shrunk)
    monkeypatch.delattr(components, "_from_pretrained")
    random_checkpoint.write_checkpoint(tmp_path, "tiny")
    checkpoint = open_checkpoint(str(tmp_path))
    assert (checkpoint.card.id, checkpoint.card.default_width) == ("safelight/random-tiny", 1024)
    assert {part.dtype for part in checkpoint.components if part.weight_bytes} == {"BF16"}
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) == 3
    report = LoadReport(7, checkpoint.weight_bytes, lambda _: None, threading.Event())
    pipeline = pipelines.build_pipeline(checkpoint, "cpu", "float32", report)
    pixels = pipeline("a red circle", width=64, height=64, num_inference_steps=2, output_type="pt").images
    assert torch.isfinite(pixels).all()
    assert pixels.min() < pixels.max()
