"""What a file seems to be that is no FLUX.1 transformer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import islice

_SIGNS: tuple[tuple[str, str], ...] = (
    (r"lora_(A|B|up|down)\b|\blora\.(up|down)\b|\.(lokr|loha|hada|oft|dora)_", "a LoRA adapter"),
    (r"^controlnet_|\.controlnet_|input_hint_block|^pos_embed_input", "a ControlNet"),
    (r"^redux_(up|down)\.", "FLUX.1 Redux"),
    (r"ip_adapter|^image_proj", "an IP-Adapter"),
    (r"distilled_guidance_layer\.", "Chroma"),
    (r"double_stream_modulation_(img|txt)\.", "FLUX.2"),
    (r"individual_token_refiner|img_attn_qkv\.", "HunyuanVideo"),
    (r"joint_blocks\.", "Stable Diffusion 3"),
    (r"conditioner\.embedders\.|label_emb\.|\badd_embedding\.", "Stable Diffusion XL"),
    (r"input_blocks\.|down_blocks\.\d+\.(attentions|resnets)\.|cond_stage_model\.", "Stable Diffusion"),
    (r"^txt_norm\.|transformer_blocks\.\d+\.img_mod\.", "Qwen-Image"),
    (r"noise_refiner\.|^cap_embedder\.", "Lumina or Z-Image"),
    (r"^patch_embedding\.|blocks\.\d+\.cross_attn\.", "Wan"),
    (r"^patchify_proj\.|adaln_single\.", "LTX-Video or PixArt"),
    (r"encoder\.block\.\d+\.layer\.|^enc\.blk\.", "a T5 text encoder"),
    (r"text_model\.encoder\.layers\.", "a CLIP text encoder"),
    (r"^(encoder|decoder)\.(conv_in|mid|mid_block|up|down|up_blocks|down_blocks)\.|first_stage_model\.", "a VAE"),
    (r"layers\.\d+\.self_attn\.|^blk\.\d+\.", "a language model"),
)
_MAX_NAMES = 3_000


def known_by(names: Iterable[str]) -> str | None:
    """In words, by what its tensors are called; ``None`` if that tells nothing."""
    few = list(islice(names, _MAX_NAMES))
    for pattern, words in _SIGNS:
        sign = re.compile(pattern)
        if any(sign.search(name) for name in few):
            return words
    return None


def known_by_its_own_words(metadata: Mapping[str, str]) -> str | None:
    """As ``known_by``, by what the file says of itself."""
    architecture = metadata.get("general.architecture") or metadata.get("modelspec.architecture")
    return f"a model of the architecture {architecture[:40]!r}" if architecture else None
