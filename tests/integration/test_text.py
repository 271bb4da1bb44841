"""Prompt embeddings: the lean T5 against transformers' own, and the cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safelight.checkpoint import open_checkpoint
from safelight.config import EMBEDDED_MODEL
from safelight.engine.flux.t5 import LeanT5
from safelight.engine.flux.text import TextEncoder

pytestmark = pytest.mark.filterwarnings("ignore:.*torch_dtype")


def _t5(**changes: Any) -> Any:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 48, "d_kv": 16, "d_ff": 80, "num_layers": 3, "num_heads": 4, "vocab_size": 64}
    return T5EncoderModel(T5Config(**sizes, **{"feed_forward_proj": "gated-gelu"} | changes)).eval()


@pytest.mark.parametrize("tokens", [24, 13])
@torch.inference_mode()
def test_the_lean_t5_equals_that_of_transformers(tokens: int) -> None:
    model = _t5()
    token_ids = torch.randint(0, 64, (1, tokens))
    expected = model(token_ids)[0].clone()
    found = LeanT5(model)(token_ids)
    assert found.shape == expected.shape
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    # The layers are views now, and still the same layers.
    assert torch.equal(model(token_ids)[0], expected)


def test_a_t5_that_is_not_gated_is_left_to_transformers() -> None:
    assert LeanT5.fits(_t5())
    assert not LeanT5.fits(_t5(feed_forward_proj="relu"))


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
    for number in range(100):
        encoder(f"a red circle {number}", 24)
    assert len(encoder._kept) == 64
