"""Prompt embeddings, kept for the prompts that come again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

from safelight.engine.flux.t5 import LeanT5

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
        self._t5: Callable[[torch.Tensor], torch.Tensor] | None = None
        if pipeline.text_encoder_2.device.type == "cuda":
            self._launch_less()

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

    def _launch_less(self) -> None:
        """On a card, launching the encoders' many kernels takes longer than running them."""
        from safelight.engine.flux.graphs import GraphedEncoder

        if LeanT5.fits(self._pipeline.text_encoder_2):
            self._t5 = GraphedEncoder(LeanT5(self._pipeline.text_encoder_2))

    def _encode(self, prompt: str, max_sequence_length: int) -> Prompt:
        device = self._pipeline.text_encoder_2.device
        pooled = self._pipeline._get_clip_prompt_embeds(prompt, device=device)
        if self._t5 is None:
            embeds = self._pipeline._get_t5_prompt_embeds(
                prompt, max_sequence_length=max_sequence_length, device=device
            )
            return Prompt(embeds[0], pooled)
        tokens = self._pipeline.tokenizer_2(
            [prompt], padding="max_length", max_length=max_sequence_length, truncation=True, return_tensors="pt"
        )
        return Prompt(self._t5(tokens.input_ids.to(device))[0], pooled)
