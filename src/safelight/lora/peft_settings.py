"""What diffusers writes beside an adapter's tensors: the PEFT settings that say how strong its layers are."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from safelight.errors import LoraInvalid

_MEMBER = "lora_adapter_metadata"
_PREFIX = "transformer."
_PLAIN_NAME = re.compile(r"\^?[\w.]+")


class PeftSettings(msgspec.Struct, frozen=True):
    """``lora_alpha`` is that of every layer but those of ``alpha_pattern``; ``None`` means the layer's own rank."""

    lora_alpha: float | None = None
    alpha_pattern: dict[str, float] = {}
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False

    def alpha(self, layer: str, rank: int) -> float:
        """Of a layer by diffusers' name. The patterns are taken as names, not as regular expressions."""
        for name, alpha in self.alpha_pattern.items():
            plain = name.removeprefix("^")
            if layer == plain or layer.endswith(f".{plain}"):
                return alpha
        return float(rank) if self.lora_alpha is None else self.lora_alpha

    def factor(self, alpha: float, rank: int) -> float:
        """By which the product of the two matrices is multiplied; rsLoRA is arXiv 2312.03732."""
        return alpha / rank**0.5 if self.use_rslora else alpha / rank


def read_settings(adapter: str, metadata: Mapping[str, str]) -> PeftSettings:
    """Raises ``LoraInvalid`` for settings that cannot be followed."""
    text = metadata.get(_MEMBER)
    if text is None:
        return PeftSettings()
    try:
        members = msgspec.json.decode(text, type=dict[str, object])
        own = {name.removeprefix(_PREFIX): value for name, value in members.items() if name.startswith(_PREFIX)}
        settings = msgspec.convert(own, PeftSettings)
    except (msgspec.MsgspecError, RecursionError):
        raise LoraInvalid(f"{adapter}: its PEFT settings are not readable", param="loras") from None
    if settings.use_dora:
        raise LoraInvalid(f"{adapter} is for DoRA: only LoRA is served", param="loras")
    if settings.lora_bias:
        raise LoraInvalid(f"{adapter} is for LoRA with biases: only LoRA without is served", param="loras")
    if unusual := [name for name in settings.alpha_pattern if not _PLAIN_NAME.fullmatch(name)]:
        raise LoraInvalid(f"{adapter}: its alpha_pattern {unusual[0]!r} is not the name of a layer", param="loras")
    return settings
