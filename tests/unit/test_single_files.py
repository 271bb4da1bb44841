"""What a single file is, told from its header: the names of its tensors, what model they make, and what is refused."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safelight.checkpoint import Checkpoint, open_checkpoint
from safelight.checkpoint.flux_names import BLACK_FOREST_LABS
from safelight.errors import CheckpointInvalid, CheckpointNotFound
from safelight.model_card import Family
from tests.unit.fake_checkpoint import write_json
from tests.unit.fake_transformer import (
    HEAD_DIM,
    OUT,
    POOLED,
    TEXT,
    WIDTH,
    Shapes,
    count_of,
    shapes_of,
    write_base,
    write_transformer,
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


def _open(path: Path, base: Path) -> Checkpoint:
    return open_checkpoint(str(path), None, str(base))


def _refusal(path: Path, base: Path) -> str:
    with pytest.raises(CheckpointInvalid) as caught:
        _open(path, base)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_single_file_is_a_model_with_what_it_lacks_from_the_base(tmp_path: Path, base: Path) -> None:
    path = write_transformer(tmp_path / "mine.safetensors", shapes_of(), "BF16")
    checkpoint = _open(path, base)
    parts = {part.name: part for part in checkpoint.components}
    transformer = parts.pop("transformer")
    assert transformer.config == {
        "patch_size": 1,
        "in_channels": OUT,
        "out_channels": OUT,
        "num_layers": 2,
        "num_single_layers": 3,
        "attention_head_dim": HEAD_DIM,
        "num_attention_heads": WIDTH // HEAD_DIM,
        "joint_attention_dim": TEXT,
        "pooled_projection_dim": POOLED,
        "guidance_embeds": True,
        "axes_dims_rope": [16, 56, 56],
    }
    assert transformer.files == (path,)
    assert (transformer.dtype, transformer.weight_bytes) == ("BF16", 2 * transformer.weight_count)
    assert transformer.weight_count == sum(count_of(shape) for shape in shapes_of().values())
    assert all(part.folder == base / name for name, part in parts.items())
    assert (checkpoint.path, checkpoint.card.id, checkpoint.card.family) == (path, str(path), Family.DEV)


@pytest.mark.parametrize(
    ("name", "shapes", "metadata", "family"),
    [
        ("flux1-dev-fp8.safetensors", shapes_of(), None, Family.DEV),
        ("flux1-schnell.safetensors", shapes_of(guidance=False), None, Family.SCHNELL),
        ("dev-by-name.safetensors", shapes_of(guidance=False), {"modelspec.title": "dev"}, Family.SCHNELL),
        ("flux1-krea-dev_fp8_scaled.safetensors", shapes_of(), None, Family.KREA),
        ("FLUX1-Kontext-dev.sft", shapes_of(), None, Family.KONTEXT),
        ("mine.safetensors", shapes_of(), {"modelspec.title": "Flux.1 Kontext Dev"}, Family.KONTEXT),
        ("mine.safetensors", shapes_of(), {"modelspec.architecture": "flux-1-krea-dev"}, Family.KREA),
        ("mine.safetensors", shapes_of(in_channels=2 * OUT + 256), None, Family.FILL),
        ("comfy.safetensors", shapes_of(prefix="model.diffusion_model."), None, Family.DEV),
    ],
)
def test_the_family_is_told_from_shapes_then_from_words(
    name: str, shapes: Shapes, metadata: dict[str, str] | None, family: Family, tmp_path: Path, base: Path
) -> None:
    card = _open(write_transformer(tmp_path / name, shapes, metadata=metadata), base).card
    assert card.family is family
    assert card.has_guidance is (family is not Family.SCHNELL)


def test_diffusers_names_are_read_as_well(tmp_path: Path, base: Path) -> None:
    theirs = _open(write_transformer(tmp_path / "a.safetensors", shapes_of()), base)
    shapes: Shapes = {}
    for name, (first, *others) in shapes_of().items():
        shares = BLACK_FOREST_LABS.shares(name)
        for share in shares:
            shapes[share.layer] = (first * share.parts // sum(share.parts for share in shares), *others)
    ours = _open(write_transformer(tmp_path / "b.safetensors", shapes), base)
    assert ours.components[-2].config == theirs.components[-2].config is not None


@pytest.mark.parametrize(("guidance", "settings"), [(True, (3.0, True)), (False, (1.0, False))])
def test_a_base_of_the_other_kind_gives_no_wrong_noise_schedule(
    guidance: bool, settings: tuple[float, bool], tmp_path: Path, base: Path
) -> None:
    path = write_transformer(tmp_path / "a.safetensors", shapes_of(guidance=guidance))
    for base_guidance in (True, False):
        write_json(base / "transformer" / "config.json", {"guidance_embeds": base_guidance})
        (scheduler,) = (part for part in _open(path, base).components if part.name == "scheduler")
        if base_guidance is guidance:
            assert scheduler.config is None
        else:
            assert scheduler.config is not None
            assert (scheduler.config["shift"], scheduler.config["use_dynamic_shifting"]) == settings


def test_a_base_needs_no_transformer_of_its_own(tmp_path: Path, base: Path) -> None:
    for path in (base / "transformer").iterdir():
        path.unlink()
    (base / "transformer").rmdir()
    assert _open(write_transformer(tmp_path / "a.safetensors", shapes_of()), base).card.family is Family.DEV


@pytest.mark.parametrize("is_dynamic", [True, False])
def test_of_a_base_without_a_transformer_the_scheduler_itself_tells_its_kind(
    is_dynamic: bool, tmp_path: Path, base: Path
) -> None:
    (base / "transformer" / "config.json").unlink()
    write_json(base / "scheduler" / "scheduler_config.json", {"shift": 2.0, "use_dynamic_shifting": is_dynamic})
    for guidance in (True, False):
        path = write_transformer(tmp_path / "a.safetensors", shapes_of(guidance=guidance))
        (scheduler,) = (part for part in _open(path, base).components if part.name == "scheduler")
        assert (scheduler.config is None) is (guidance is is_dynamic)


def test_it_may_have_a_card_of_its_own_beside_it(tmp_path: Path, base: Path) -> None:
    path = write_transformer(tmp_path / "portraits.safetensors", shapes_of())
    write_json(tmp_path / "portraits.safelight.json", {"id": "acme/portraits", "default_width": 512})
    card = _open(path, base).card
    assert (card.id, card.default_width) == ("acme/portraits", 512)


def test_without_a_base_the_remedy_is_named(tmp_path: Path) -> None:
    path = write_transformer(tmp_path / "a.safetensors", shapes_of())
    with pytest.raises(CheckpointNotFound, match="--base-model") as caught:
        open_checkpoint(str(path))
    assert str(path) in caught.value.message


def test_a_base_that_is_not_there_or_no_directory_is_named(tmp_path: Path) -> None:
    path = write_transformer(tmp_path / "a.safetensors", shapes_of())
    with pytest.raises(CheckpointNotFound, match="no/base"):
        open_checkpoint(str(path), None, "no/base")
    with pytest.raises(CheckpointInvalid, match="is a single file"):
        open_checkpoint(str(path), None, str(path))


@pytest.mark.parametrize(
    ("folder", "config", "sentence"),
    [
        ("text_encoder_2", {"d_model": 4096}, "its T5 text encoder gives 4096 channels, and the transformer takes 512"),
        ("text_encoder", {"hidden_size": 768}, "its CLIP text encoder gives 768 channels"),
        ("vae", {"latent_channels": 4}, "its VAE gives 16 channels, and the transformer takes 64"),
    ],
)
def test_a_base_of_another_model_is_refused(
    folder: str, config: dict[str, int], sentence: str, tmp_path: Path, base: Path
) -> None:
    path = write_transformer(tmp_path / "a.safetensors", shapes_of())
    write_json(base / folder / "config.json", config)
    message = _refusal(path, base)
    assert sentence in message and str(base) in message


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["lora_unet_double_blocks_0_img_attn_proj.lora_down.weight"], "a LoRA adapter"),
        (["transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"], "a LoRA adapter"),
        (["double_blocks.0.img_attn.proj.lora_B.weight"], "a LoRA adapter"),
        (["lycoris_double_blocks_0.lokr_w1"], "a LoRA adapter"),
        (["model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.0.x"], "Stable Diffusion XL"),
        (["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.x"], "Stable Diffusion"),
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "Stable Diffusion 3"),
        (["encoder.down.0.block.0.conv1.weight", "decoder.conv_in.weight"], "a VAE"),
        (["decoder.up_blocks.0.resnets.0.conv1.weight"], "a VAE"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"], "a T5 text encoder"),
        (["text_model.encoder.layers.0.self_attn.k_proj.weight"], "a CLIP text encoder"),
        (["model.layers.0.self_attn.q_proj.weight"], "a language model"),
        ([*shapes_of(), "distilled_guidance_layer.in_proj.weight"], "Chroma"),
        (["double_stream_modulation_img.lin.weight", "img_in.weight"], "FLUX.2"),
        (["controlnet_x_embedder.weight", *shapes_of()], "a ControlNet"),
        (["redux_up.weight"], "FLUX.1 Redux"),
        (["something.weight"], "something else"),
    ],
)
def test_another_kind_of_model_is_called_by_its_name(names: list[str], what: str, tmp_path: Path, base: Path) -> None:
    path = write_transformer(tmp_path / "a.safetensors", dict.fromkeys(names, (1,)))
    assert f"it seems to be {what}, which" in _refusal(path, base)


def test_the_control_models_are_refused_by_their_channels(tmp_path: Path, base: Path) -> None:
    assert "Canny and Depth" in _refusal(
        write_transformer(tmp_path / "a.safetensors", shapes_of(in_channels=2 * OUT)), base
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda shapes: shapes.pop("img_in.bias"), "lacks 1 tensors, the first is img_in.bias"),
        (lambda shapes: shapes.pop("double_blocks.0.txt_attn.qkv.weight"), "double_blocks.0.txt_attn.qkv.weight"),
        (lambda shapes: shapes.pop("guidance_in.out_layer.bias"), "lacks 1 tensors, the first is guidance_in.out_lay"),
        (lambda shapes: shapes.update({"single_blocks.9.linear1.bias": (7,)}), "the first is single_blocks.3.modul"),
        (lambda shapes: shapes.update(another=(1,)), "has 1 tensors that FLUX.1's transformer has not, the first is a"),
        (lambda shapes: shapes.update({"img_in.scale": (1,)}), "the first is img_in.scale"),
        (lambda shapes: shapes.update({"double_blocks.0.img_attn.qkv.bias": (100,)}), "[100], which is not 3 equal"),
        (lambda shapes: shapes.update({"single_blocks.0.linear1.bias": ()}), "of the shape [], which is not 7 equal"),
        (lambda shapes: shapes.update({"img_in.weight": (0, 64)}), "img_in.weight of the shape [0, 64]"),
        (lambda shapes: shapes.update({"img_in.weight": (256,)}), "x_embedder.weight has the shape [256]"),
        (
            lambda shapes: shapes.update({"double_blocks.0.img_attn.norm.query_norm.scale": (100,)}),
            "256 channels are no whole number of heads of 100",
        ),
        (
            lambda shapes: shapes.update({"double_blocks.0.img_attn.norm.query_norm.scale": (64,)}),
            "its heads have 64 channels",
        ),
    ],
)
def test_what_is_not_as_in_flux_is_named(
    change: Callable[[Shapes], object], sentence: str, tmp_path: Path, base: Path
) -> None:
    shapes = shapes_of()
    change(shapes)
    assert sentence in _refusal(write_transformer(tmp_path / "a.safetensors", shapes), base)


def _many_blocks(count: int) -> Shapes:
    blocks = [f"{kind}_blocks.{index}.{layer}" for index in range(count) for kind, layer in _LAYERS.items()]
    return dict.fromkeys([*blocks, "img_in.weight"], (0,))


_LAYERS = {"double": "img_attn.qkv.weight", "single": "linear1.weight"}
BOMBS: dict[str, Callable[[], Shapes]] = {
    "blocks without end": lambda: _many_blocks(9_000),
    "blocks enough": lambda: _many_blocks(2_900),
    "nothing of FLUX": lambda: dict.fromkeys([f"tensor.{index}" for index in range(19_000)], (0,)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_header_of_many_tensors_is_refused_before_anybody_waits(name: str, tmp_path: Path, base: Path) -> None:
    path = write_transformer(tmp_path / "a.safetensors", BOMBS[name]())
    start = time.process_time()
    _refusal(path, base)
    assert time.process_time() - start < 0.2


def _quantised(more: Shapes, dtypes: dict[str, str]) -> tuple[Shapes, Callable[[str], str]]:
    return shapes_of() | more, lambda name: dtypes.get(name, dtypes.get("*", "F8_E4M3"))


SCALE = "double_blocks.0.img_mlp.0.weight_scale"
WEIGHT = "double_blocks.0.img_mlp.0.weight"


@pytest.mark.parametrize(
    ("more", "dtypes", "scheme"),
    [
        ({f"{WEIGHT}.quant_state.bitsandbytes__nf4": (9,)}, {}, "NF4 of bitsandbytes"),
        ({f"{WEIGHT}.absmax": (9,)}, {}, "bitsandbytes"),
        ({"double_blocks.0.img_mlp.0.qweight": (9,)}, {}, "GPTQ or AWQ"),
        ({"double_blocks.0.img_mlp.0.wscales": (9,)}, {}, "SVDQuant of Nunchaku"),
        ({"double_blocks.0.img_mlp.0.weight_scale_2": (1,), SCALE: (8,)}, {}, "NVFP4"),
        ({SCALE: (4, WIDTH)}, {SCALE: "F32"}, "F8_E4M3 with scales in F32 of the shape [4, 256]"),
        ({SCALE: (1,)}, {SCALE: "U8"}, "F8_E4M3 with scales in U8"),
        ({SCALE: (1,)}, {SCALE: "F32", WEIGHT: "I8"}, "I8 with scales in F32"),
    ],
)
def test_a_quantisation_that_is_not_understood_is_called_by_its_name(
    more: Shapes, dtypes: dict[str, str], scheme: str, tmp_path: Path, base: Path
) -> None:
    path = write_transformer(tmp_path / "a.safetensors", *_quantised(more, dtypes))
    assert f"quantised in a way that is not read here, {scheme}" in _refusal(path, base)


@pytest.mark.parametrize(
    ("layer", "scheme"),
    [
        ({"format": "nvfp4"}, "nvfp4"),
        ({"format": "int8_tensorwise", "convrot": True}, "int8_tensorwise"),
        ({"format": "float8_e4m3fn", "convrot": True}, "float8_e4m3fn with convrot"),
        ({}, "None"),
    ],
)
def test_the_format_that_a_file_states_is_believed(
    layer: dict[str, Any], scheme: str, tmp_path: Path, base: Path
) -> None:
    metadata = {"_quantization_metadata": json.dumps({"layers": {"double_blocks.0.img_mlp.0": layer}})}
    assert scheme in _refusal(write_transformer(tmp_path / "a.safetensors", shapes_of(), metadata=metadata), base)
    content = json.dumps(layer).encode()
    name = "double_blocks.0.img_mlp.0.comfy_quant"
    path = write_transformer(
        tmp_path / "b.safetensors", shapes_of() | {name: (len(content),)}, contents={name: content}
    )
    assert scheme in _refusal(path, base)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 5000, b""])
def test_a_format_that_cannot_be_read_is_refused(content: bytes, tmp_path: Path, base: Path) -> None:
    name = "double_blocks.0.img_mlp.0.comfy_quant"
    path = write_transformer(
        tmp_path / "b.safetensors", shapes_of() | {name: (len(content),)}, contents={name: content}
    )
    assert "comfy_quant that cannot be read" in _refusal(path, base)


def test_whole_numbers_are_no_weights(tmp_path: Path, base: Path) -> None:
    assert "img_in.weight in I8" in _refusal(write_transformer(tmp_path / "a.safetensors", shapes_of(), "I8"), base)


@pytest.mark.parametrize("suffix", ["ckpt", "pt", "bin"])
def test_pickled_weights_are_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"PK\3\4")
    with pytest.raises(CheckpointInvalid, match="which can run code"):
        open_checkpoint(str(path))


@pytest.mark.parametrize("content", [b"", b"GG", b"<!DOCTYPE html>", struct.pack("<Q", 2**40), b"\0" * 100])
def test_what_is_no_weights_file_at_all_is_refused(content: bytes, tmp_path: Path, base: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    _refusal(path, base)
