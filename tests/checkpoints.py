"""Makes a tiny random FLUX checkpoint with the real classes, sharded, in diffusers layout; ``python -m`` writes one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

VOCABULARY = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "circle", "square", "on", "background"]


PACKED_CHANNELS = 16
"""Of four latents of four channels each."""
MASK_CHANNELS = 4 * 8**2
LIVELY = 3.0
"""Times fresh weights: else whatever a transformer of two blocks is shown hardly changes the picture."""


def make_checkpoint(
    folder: Path,
    *,
    guidance_embeds: bool = True,
    max_shard_size: str = "20KB",
    pipeline: str = "FluxPipeline",
    liveliness: float = 1.0,
) -> Path:
    """A few hundred kilobytes of float32 weights; the transformer and the T5 encoder come in several shards.

    ``pipeline`` is the class that it is made for: ``FluxKontextPipeline`` and ``FluxFillPipeline`` are families, too.
    """
    import diffusers
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    torch.manual_seed(0)
    text = {"vocab_size": 32, "bos_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    tokenizer = _word_tokenizer()
    parts: dict[str, Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                hidden_size=32,
                intermediate_size=37,
                num_attention_heads=4,
                num_hidden_layers=2,
                projection_dim=32,
                **text,
            )
        ),
        "text_encoder_2": T5EncoderModel(
            T5Config(vocab_size=32, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, pad_token_id=0)
        ),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "transformer": FluxTransformer2DModel(
            in_channels=2 * PACKED_CHANNELS + MASK_CHANNELS if pipeline == "FluxFillPipeline" else PACKED_CHANNELS,
            out_channels=PACKED_CHANNELS,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guidance_embeds,
        ),
        "vae": AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=1,
            use_quant_conv=False,
            use_post_quant_conv=False,
            shift_factor=0.0 if liveliness == 1.0 else 0.1,
            scaling_factor=1.0 if liveliness == 1.0 else 0.5,
        ),
    }
    with torch.no_grad():
        for weight in parts["transformer"].parameters():
            weight *= liveliness
    getattr(diffusers, pipeline)(**parts).save_pretrained(folder, max_shard_size=max_shard_size)
    parts["text_encoder_2"].save_pretrained(folder / "text_encoder_2", max_shard_size=max_shard_size)
    return folder


def _word_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=32
    )


def edit_json(path: Path, **members: object) -> None:
    """Rewrites members of a JSON object on disk."""
    path.write_text(json.dumps(json.loads(path.read_text()) | members))


if __name__ == "__main__":
    make_checkpoint(Path(sys.argv[1]))
