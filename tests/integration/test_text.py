"""Prompt embeddings are those of diffusers, and kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safelight.checkpoint import open_checkpoint
from safelight.config import EMBEDDED_MODEL
from safelight.engine.flux.text import Prompt, TextEncoder

pytestmark = pytest.mark.filterwarnings("ignore:.*torch_dtype")


@torch.inference_mode()
def test_a_prompt_is_encoded_once_for_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(open_checkpoint(EMBEDDED_MODEL).path, dtype=torch.float32)
    encoder, encoded = TextEncoder(pipeline), []
    encode = encoder._encode

    def watched(prompt: str, length: int) -> Any:
        encoded.append((prompt, length))
        return encode(prompt, length)

    monkeypatch.setattr(encoder, "_encode", watched)
    for prompt, length in (("a red circle", 24), ("a blue star", 24), ("a red circle", 24), ("a red circle", 12)):
        embeds, pooled = encoder(prompt, length)
        expected = pipeline.encode_prompt(prompt, None, device="cpu", max_sequence_length=length)
        assert torch.equal(embeds, expected[0][0]) and torch.equal(pooled, expected[1])
    assert encoded == [("a red circle", 24), ("a blue star", 24), ("a red circle", 12)]
    monkeypatch.setattr(encoder, "_encode", lambda prompt, length: Prompt(embeds, pooled))
    for number in range(100):
        encoder(f"a red circle {number}", 24)
    assert len(encoder._kept) == 64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.inference_mode()
def test_recorded_encoders_give_the_same() -> None:
    from diffusers import FluxPipeline

    from safelight.engine.flux.graphs import GraphedEncoder

    pipeline = FluxPipeline.from_pretrained(open_checkpoint(EMBEDDED_MODEL).path, dtype=torch.float32).to("cuda")
    texts = [("a red circle", 24), ("a blue star", 24), ("a red circle", 12)]
    expected = [pipeline.encode_prompt(text, None, max_sequence_length=length)[:2] for text, length in texts]
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        encoder.forward = GraphedEncoder(encoder.forward)
    for (text, length), (embeds, pooled) in zip(texts, expected, strict=True):
        for _ in range(2):
            found = pipeline.encode_prompt(text, None, max_sequence_length=length)
            assert torch.equal(found[0], embeds) and torch.equal(found[1], pooled)
