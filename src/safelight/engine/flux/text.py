"""Prompt embeddings, kept for the prompts that come again."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from diffusers import FluxPipeline

_KEPT_PROMPTS = 64


class Prompt(NamedTuple):
    """What the text encoders make of a prompt: T5's (tokens, size) and CLIP's pooled (1, size)."""

    embeds: torch.Tensor
    pooled: torch.Tensor


class TextEncoder:
    """The pipeline's text encoders behind a cache of the least lately used kind; some 4 MB a prompt for FLUX.1."""

    def __init__(self, pipeline: FluxPipeline) -> None:
        self._pipeline = pipeline
        self._kept: OrderedDict[tuple[str, int], Prompt] = OrderedDict()

    def __call__(self, prompt: str, max_sequence_length: int) -> Prompt:
        """Embeddings of exactly ``max_sequence_length`` tokens: FLUX attends to padding too."""
        key = prompt, max_sequence_length
        kept = self._kept.get(key)
        if kept is None:
            kept = self._encode(prompt, max_sequence_length)
            if len(self._kept) >= _KEPT_PROMPTS:
                self._kept.popitem(last=False)
        self._kept[key] = kept
        self._kept.move_to_end(key)
        return kept

    def _encode(self, prompt: str, max_sequence_length: int) -> Prompt:
        embeds, pooled, _ids = self._pipeline.encode_prompt(
            prompt=prompt,
            prompt_2=None,
            device=self._pipeline.text_encoder_2.device,
            max_sequence_length=max_sequence_length,
        )
        return Prompt(embeds[0], pooled)
