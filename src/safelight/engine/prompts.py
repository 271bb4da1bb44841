"""What the text encoders will make of a prompt, told to the user: words that are unknown, words that are cut off."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from safelight.params import GenerationParams

if TYPE_CHECKING:
    from diffusers import FluxPipeline

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
_NAMED_WORDS = 10


def count_tokens(pipeline: FluxPipeline, prompt: str) -> int:
    """Tokens of the T5 encoder, the end token included, before anything is cut."""
    return len(pipeline.tokenizer_2(prompt, truncation=False).input_ids)


def prompt_warnings(pipeline: FluxPipeline, params: GenerationParams) -> list[str]:
    """Sentences about words of the prompt that cannot act on the picture."""
    warnings = []
    unknown = _unknown_words(pipeline, params.prompt)
    if unknown:
        named = ", ".join(unknown[:_NAMED_WORDS]) + (", ..." if len(unknown) > _NAMED_WORDS else "")
        warnings.append(f"the model does not know: {named}")
    tokens = count_tokens(pipeline, params.prompt)
    if tokens > params.max_sequence_length:
        warnings.append(
            f"the prompt has {tokens} tokens; those after the first {params.max_sequence_length} are cut off"
        )
    return warnings


def _unknown_words(pipeline: FluxPipeline, prompt: str) -> list[str]:
    tokenizer = pipeline.tokenizer_2
    words = dict.fromkeys(_WORD.findall(prompt.lower()))
    return [word for word in words if tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False).input_ids]
