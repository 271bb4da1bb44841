"""What the header of an adapter's file tells: whose layers they are, and why it cannot be used if it cannot."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safelight.checkpoint import open_checkpoint
from safelight.errors import InvalidValue, LoraInvalid
from safelight.lora.adapter_file import MAX_FILE_BYTES, read_adapter
from safelight.lora.directory import AdapterDirectories
from safelight.lora.keys import Key, Part, parse_key
from safelight.lora.layers import Size, flux_layers, targets_by_name
from tests.unit.adapter_headers import Shapes, pair, write_header

EMBEDDED: dict[str, Size] = flux_layers(
    json.loads((open_checkpoint("safelight/shapes").path / "transformer" / "config.json").read_text())
)
QUERY = "transformer_blocks.0.attn.to_q"
GOOD: Shapes = {name: shape for layer, size in EMBEDDED.items() for name, shape in pair(layer, size).items()}


def _unreadable(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _bomb(path: Path) -> Path:
    """A million empty tensors."""
    raw = b'{"a":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}' + b',"a":{"dtype":"F16"}' * 1_000_000 + b"}"
    return _unreadable(path, struct.pack("<Q", len(raw)) + raw)


def _huge(path: Path) -> Path:
    write_header(path, GOOD)
    os.truncate(path, 3 * 1024**3)
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _with(**changes: Any) -> Callable[[Path], Path]:
    extra = {name.replace("__", "."): shape for name, shape in changes.items()}
    return lambda path: write_header(path, GOOD | extra)


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing in it": (lambda path: _unreadable(path, b""), "is truncated: 0 bytes"),
    "a header bomb": (_bomb, "header"),
    "3 GB": (_huge, f"{MAX_FILE_BYTES} at most"),
    "a folder": (_folder, "is not a file"),
    "a pickle": (lambda path: _unreadable(path, b"\x80\x04cposix\nsystem\n." * 9), "not a safetensors file"),
    "no tensors": (lambda path: write_header(path, {}), "has no layers"),
    "a larger base": (
        lambda path: write_header(path, pair(QUERY, Size(3072, 3072))),
        "is for another model: 0 of its 1 layers fit this one; transformer_blocks.0.attn.to_q is 3072 x 3072, "
        "this model's is 192 x 192",
    ),
    "a longer base": (
        lambda path: write_header(path, GOOD | pair("transformer_blocks.18.attn.to_q", Size(192, 192))),
        f"{len(EMBEDDED)} of its {len(EMBEDDED) + 1} layers fit this one; transformer_blocks.18.attn.to_q is not in",
    ),
    "rank 4096": (lambda path: write_header(path, pair(QUERY, Size(192, 192), rank=4096)), "rank 4096"),
    "rank 0": (lambda path: write_header(path, pair(QUERY, Size(192, 192), rank=0)), "rank 0"),
    "another kind of tensor": (_with(position_embedding=(1, 2)), "has the tensor position_embedding"),
    "half a layer": (lambda path: write_header(path, dict(list(GOOD.items())[:-1])), "only a part of proj_out"),
    "two ranks in a layer": (_with(transformer__proj_out__lora_B__weight=(96, 7)), "rank 4 and 7"),
    "a convolution": (_with(transformer__proj_out__lora_B__weight=(96, 4, 1, 1)), "a matrix is needed"),
    "alpha of many values": (_with(transformer__proj_out__alpha=(3,)), "alpha that is not a number"),
    "a layer twice": (_with(diffusion_model__proj_out__lora_A__weight=(4, 192)), "a layer twice"),
    "a layer under two names": (
        lambda path: write_header(
            path, GOOD | {"lora_unet_img_in.lora_down.weight": (4, 96), "lora_unet_img_in.lora_up.weight": (192, 4)}
        ),
        "changes x_embedder twice",
    ),
    "whole numbers": (lambda path: write_header(path, GOOD, dtype="I8"), "as I8: F32, F16, BF16 are read"),
    "text encoders only": (
        lambda path: write_header(path, {"lora_te1_a.lora_down.weight": (4, 8), "lora_te1_a.lora_up.weight": (8, 4)}),
        "changes the text encoders only",
    ),
    "DoRA": (_with(transformer__proj_out__dora_scale=(96,)), "is for DoRA"),
    "LoKr": (_with(lora_unet_proj_out__lokr_w1=(4, 4)), "is for LoKr"),
    "LoHa": (_with(lora_unet_proj_out__hada_w1_a=(4, 4)), "is for LoHa"),
    "OFT": (_with(lora_unet_proj_out__oft_blocks=(4, 4)), "is for OFT"),
    "a bias": (_with(transformer__proj_out__lora_B__bias=(96,)), "LoRA with biases"),
    "a difference": (_with(diffusion_model__img_in__diff_b=(192,)), "full difference"),
    "DoRA by its settings": (
        lambda path: write_header(path, GOOD, metadata={"lora_adapter_metadata": '{"transformer.use_dora": true}'}),
        "is for DoRA",
    ),
    "settings that are none": (
        lambda path: write_header(path, GOOD, metadata={"lora_adapter_metadata": '{"transformer.lora_alpha": "a"}'}),
        "its PEFT settings are not readable",
    ),
    "a pattern that takes for ever": (
        lambda path: write_header(
            path, GOOD, metadata={"lora_adapter_metadata": '{"transformer.alpha_pattern": {"(a+)+$": 1}}'}
        ),
        "alpha_pattern",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_adapter_of_the_model_is_refused_at_once_by_a_sentence_that_says_why(
    kind: str, tmp_path: Path
) -> None:
    write, sentence = REFUSED[kind]
    path = write(tmp_path / "x.safetensors")
    start_s = time.process_time()
    with pytest.raises(LoraInvalid) as refused:
        read_adapter("x", path).pieces(EMBEDDED)
    assert time.process_time() - start_s < 0.2
    assert refused.value.message.startswith("the LoRA adapter 'x'")
    assert sentence in refused.value.message
    assert str(tmp_path) not in refused.value.message
    assert refused.value.param == "loras"


def test_offsets_that_do_not_go_with_the_shape_are_refused(tmp_path: Path) -> None:
    path = write_header(tmp_path / "x.safetensors", GOOD)
    path.write_bytes(path.read_bytes().replace(b"[4, 96]", b"[9, 96]", 1))
    with pytest.raises(LoraInvalid, match="which is not what its shape needs"):
        read_adapter("x", path)


def test_a_good_one_says_what_it_is(tmp_path: Path) -> None:
    extra = {"text_encoder.a.lora_A.weight": (4, 8), "text_encoder.a.lora_B.weight": (8, 4)}
    file = read_adapter("x", write_header(tmp_path / "x.safetensors", GOOD | extra))
    assert (file.rank, len(file.layers), file.text_encoder_layers) == (4, len(EMBEDDED), 1)
    assert {piece.layer for piece in file.pieces(EMBEDDED)} == set(EMBEDDED)


KEYS = {
    "transformer.proj_out.lora_A.weight": Key("proj_out", Part.DOWN),
    "transformer.proj_out.lora_B.default.weight": Key("proj_out", Part.UP),
    "base_model.model.transformer.proj_out.lora_A.weight": Key("proj_out", Part.DOWN),
    "proj_out.lora.up.weight": Key("proj_out", Part.UP),
    "lora_unet_double_blocks_3_img_attn_qkv.lora_down.weight": Key("double_blocks_3_img_attn_qkv", Part.DOWN),
    "lora_unet_double_blocks_3_img_attn_qkv.alpha": Key("double_blocks_3_img_attn_qkv", Part.ALPHA),
    "lora_transformer_transformer_blocks_0_attn_to_q.lora_up.weight": Key("transformer_blocks_0_attn_to_q", Part.UP),
    "diffusion_model.single_blocks.1.linear1.lora_A.weight": Key("single_blocks.1.linear1", Part.DOWN),
    "double_blocks.0.processor.qkv_lora1.down.weight": Key("double_blocks.0.processor.qkv_lora1", Part.DOWN),
    "single_blocks.0.processor.proj_lora.up.weight": Key("single_blocks.0.processor.proj_lora", Part.UP),
    "lora_te1_text_model_a.alpha": Key("lora_te1_text_model_a", Part.ALPHA, is_text_encoder=True),
    "double_blocks.0.norm.scale": None,
    "model.weight": None,
}


@pytest.mark.parametrize("name", KEYS)
def test_names_of_tensors_are_read_whoever_wrote_them(name: str) -> None:
    assert parse_key(name) == KEYS[name]


def test_every_name_stands_for_layers_that_are_there() -> None:
    named = targets_by_name(EMBEDDED)
    assert {target.layer for targets in named.values() for target in targets} == set(EMBEDDED)
    assert "double_blocks.3.img_attn.qkv" not in named  # it has three
    assert [target.layer for target in named["single_blocks_3_linear1"]] == [
        f"single_transformer_blocks.3.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ]


def test_the_layers_are_those_that_diffusers_makes() -> None:
    import torch
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        whole = FluxTransformer2DModel(guidance_embeds=True)  # FLUX.1-dev
        small = FluxTransformer2DModel(**_SMALL)
    for model in (whole, small):
        made = {
            name: Size(module.in_features, module.out_features)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
        assert flux_layers(dict(model.config)) == made


_SMALL = {"in_channels": 8, "out_channels": 4, "num_layers": 2, "num_single_layers": 1, "num_attention_heads": 3}


# --- by name ------------------------------------------------------------------------------------------------------


def test_the_earlier_folder_counts_and_what_changes_is_read_again(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_header(second / "x.safetensors", pair(QUERY, Size(192, 192), rank=8))
    directories = AdapterDirectories([first, second])
    assert directories.read("x").rank == 8
    write_header(first / "x.safetensors", pair(QUERY, Size(192, 192), rank=16))
    assert directories.read("x").rank == 16
    assert directories.read("x") is directories.read("x")
    write_header(first / "x.safetensors", pair(QUERY, Size(192, 192), rank=32))
    assert directories.read("x").rank == 32
    (first / "x.safetensors").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(LoraInvalid):
            directories.read("x")


def test_only_files_whose_names_can_be_asked_for_are_listed(tmp_path: Path) -> None:
    for name in ("b.safetensors", "A (v1.2).safetensors", "c.bin", ".hidden.safetensors", "a:b.safetensors"):
        (tmp_path / name).touch()
    assert AdapterDirectories([tmp_path, tmp_path / "nowhere"]).names() == ["A (v1.2)", "b"]


@pytest.mark.parametrize(
    "name", ["../x", "..\\x", "/etc/x", "x/../x", "x\0", "%2e%2e%2fx", ".", "", "..", "x" * 4096, "CON:", "~x", "x\n"]
)
def test_a_path_is_no_name(name: str, tmp_path: Path) -> None:
    write_header(tmp_path / "x.safetensors", GOOD)
    with pytest.raises(InvalidValue, match="there is no LoRA adapter"):
        AdapterDirectories([tmp_path / "loras", tmp_path]).read(name)
