"""AUTOMATIC1111's way to ask for LoRA adapters: ``<lora:NAME:SCALE>`` within the prompt."""

from __future__ import annotations

import re

from safelight.params import LoraUse, parse_lora

_TAG = re.compile(r"<lora:([^<>:]*(?::[^<>:]*)?)(?::[^<>]*)?>")


def split_prompt(prompt: str) -> tuple[str, list[LoraUse]]:
    """The prompt without the tags, and what they ask for; of two scales in a tag the first counts.

    Raises ``InvalidValue`` for a scale that is no number.
    """
    uses = [parse_lora(asked) for asked in _TAG.findall(prompt)]
    return (re.sub(r"\s{2,}", " ", _TAG.sub("", prompt)).strip() if uses else prompt), uses
