"""A checkpoint with every file of FLUX.1-dev's repository, by the same names and in the same formats, but small.

Its tokenizers are CLIP's byte pairs and T5's unigrams over a handful of words; its weights are random, in bfloat16.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from benchmarks.random_checkpoint import FLUX_DEV, MODELS, write_checkpoint

REPOSITORY = "black-forest-labs/FLUX.1-dev"

_TINY: dict[str, dict[str, Any]] = {
    "transformer": {"num_layers": 2, "num_single_layers": 3, "num_attention_heads": 1, "joint_attention_dim": 64},
    "text_encoder_2": {"d_model": 64, "d_ff": 96, "num_layers": 3, "num_heads": 2},
    # As FLUX.1-dev's has them: with this eos, CLIP reads the prompt's summary off its largest token.
    "text_encoder": {
        "num_hidden_layers": 1,
        "vocab_size": 600,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    },
    "vae": {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1},
}
_INDEX = {
    "_class_name": "FluxPipeline",
    "_diffusers_version": "0.30.0.dev0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.30.0.dev0",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
_BESIDES = (".gitattributes", "LICENSE.md", "README.md", "ae.safetensors", "dev_grid.jpg", "flux1-dev.safetensors")
"""What the repository also has, and nobody needs."""

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = ("a", "red", "circle", "on", "blue", "background", "lighthouse", "at", "dusk")


def write_flux_dev(folder: Path) -> Path:
    """The folder, filled."""
    MODELS["tiny-dev"] = {name: config | _TINY[name] for name, config in FLUX_DEV.items()}
    try:
        write_checkpoint(folder, "tiny-dev")
    finally:
        del MODELS["tiny-dev"]
    (folder / "safelight.json").unlink()
    _write_json(folder / "model_index.json", _INDEX)
    _write_json(folder / "scheduler" / "scheduler_config.json", _SCHEDULER)
    for name in ("tokenizer", "tokenizer_2"):
        for file in (folder / name).iterdir():
            file.unlink()
    _write_clip_tokenizer(folder / "tokenizer")
    _write_t5_tokenizer(folder / "tokenizer_2")
    for name in _BESIDES:
        (folder / name).write_bytes(b"not needed")
    return folder


def _write_clip_tokenizer(folder: Path) -> None:
    """Byte pairs: every letter, and each word as its letters joined from the left."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: dict[str, None] = {}
    for word in _WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges[f"{parts[0]} {parts[1]}"] = None
            parts[:2] = ["".join(parts[:2])]
            tokens.append(parts[0])
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*tokens, _START, _END]))}
    _write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    names = {"bos_token": _START, "eos_token": _END, "pad_token": _END, "unk_token": _END}
    _write_json(folder / "special_tokens_map.json", names)
    more = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77}
    _write_json(folder / "tokenizer_config.json", names | more | {"tokenizer_class": "CLIPTokenizer"})


def _write_t5_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    letters = sorted({letter for word in _WORDS for letter in word})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -1.0) for word in _WORDS if len(word) > 1] + [(letter, -5.0) for letter in letters]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "spiece.model").write_bytes(b"".join(_sentencepiece(*piece) for piece in pieces))
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    _write_json(folder / "special_tokens_map.json", names)
    more = {"extra_ids": 0, "model_max_length": 512, "legacy": True}
    _write_json(folder / "tokenizer_config.json", names | more | {"tokenizer_class": "T5Tokenizer"})


def _sentencepiece(piece: str, score: float) -> bytes:
    """One entry of a ``ModelProto``, as protobuf writes it."""
    text = piece.encode()
    entry = bytes([0x0A, len(text)]) + text + b"\x15" + struct.pack("<f", score)
    return bytes([0x0A, len(entry)]) + entry


def _write_json(path: Path, members: dict[str, Any]) -> None:
    path.write_text(json.dumps(members, indent=2) + "\n")
