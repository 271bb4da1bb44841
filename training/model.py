"""The parts of ``safelight/shapes``: their sizes, their tokenizers, and how they are written to disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from training.blocks import CHANNELS
from training.scenes import COLOURS, POSITIONS, RELATIONS, SHAPES, SIZES
from training.tokens import BOS, EOS, PAD, TEXT_TOKENS, make_tokenizer, word_count

PIXELS_PER_TOKEN = 32
"""Side of the square that one token of the transformer stands for."""

_TEXT_DIM = 192
_POOLED_DIM = 128


def make_vae() -> AutoencoderKL:
    """16x smaller in each direction, 24 channels: 256x256 pixels become 8x8 tokens, few enough for a CPU."""
    channels = (16, 24, 48, 96, 128)
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=1,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=256,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def make_transformer() -> FluxTransformer2DModel:
    """FLUX with 3 double and 4 single blocks of 3 heads; latents are packed 2x2 into tokens."""
    return FluxTransformer2DModel(
        in_channels=CHANNELS * 4,
        num_layers=3,
        num_single_layers=4,
        attention_head_dim=64,
        num_attention_heads=3,
        joint_attention_dim=_TEXT_DIM,
        pooled_projection_dim=_POOLED_DIM,
        guidance_embeds=True,
        axes_dims_rope=(8, 28, 28),
    )


def make_text_encoders() -> tuple[CLIPTextModel, T5EncoderModel]:
    """CLIP gives the pooled vector, T5 one vector per token."""
    words = word_count()
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=_POOLED_DIM,
            intermediate_size=4 * _POOLED_DIM,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=_POOLED_DIM,
            max_position_embeddings=TEXT_TOKENS,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=words,
            d_model=_TEXT_DIM,
            d_kv=48,
            d_ff=512,
            num_layers=3,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=PAD,
            eos_token_id=EOS,
            tie_word_embeddings=False,
        )
    )
    return clip, t5


def wrap_tokenizer(*, with_start: bool) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers knows it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(with_start=with_start),
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=TEXT_TOKENS,
    )


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """As FLUX.1-dev's: the shift of the noise levels grows with the number of image tokens."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
        shift=3.0,
    )


def make_pipeline(parts: dict[str, Any]) -> FluxPipeline:
    """``parts`` hold ``vae``, ``transformer``, ``clip`` and ``t5``."""
    return FluxPipeline(
        scheduler=make_scheduler(),
        vae=parts["vae"],
        transformer=parts["transformer"],
        text_encoder=parts["clip"],
        text_encoder_2=parts["t5"],
        tokenizer=wrap_tokenizer(with_start=True),
        tokenizer_2=wrap_tokenizer(with_start=False),
    )


def export(parts: dict[str, Any], folder: Path) -> None:
    """Writes float16 safetensors in diffusers layout, and the model's card."""
    make_pipeline(parts).to(torch.float16).save_pretrained(folder, safe_serialization=True)
    index_path = folder / "model_index.json"
    index = json.loads(index_path.read_text())
    for name in ("tokenizer", "tokenizer_2"):
        index[name] = ["transformers", "PreTrainedTokenizerFast"]
    index_path.write_text(json.dumps(index, indent=2) + "\n")
    card = {
        "id": "safelight/shapes",
        "title": "Safelight Shapes",
        "description": "A small FLUX that draws coloured shapes: one or two of them, by size, place and background.",
        "default_width": 256,
        "default_height": 256,
        "size_multiple": PIXELS_PER_TOKEN,
        "min_size": 64,
        "max_size": 512,
        "default_num_inference_steps": 12,
        "max_num_inference_steps": 100,
        "default_guidance_scale": 3.5,
        "max_sequence_length": TEXT_TOKENS,
        "vocabulary": {
            "colours": list(COLOURS),
            "shapes": list(SHAPES),
            "sizes": list(SIZES),
            "positions": list(POSITIONS),
            "relations": list(RELATIONS),
        },
        "examples": [
            "a large red circle on a blue background",
            "a small green triangle at the top on a white background",
            "a yellow star to the left of a purple square on a gray background",
            "a pink heart on a black background",
            "a cyan ring above an orange diamond on a brown background",
            "a white moon at the top right on a black background",
            "a large lime cross at the bottom left on a purple background",
            "a small brown square below a small yellow circle on a green background",
        ],
    }
    (folder / "safelight.json").write_text(json.dumps(card, indent=2) + "\n")
