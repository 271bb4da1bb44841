"""Checkpoint directories, from their JSON files and headers alone: whole ones and all kinds of broken ones."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safelight.checkpoint import open_checkpoint
from safelight.config import EMBEDDED_MODEL
from safelight.errors import CheckpointInvalid, CheckpointNotFound
from safelight.hub.manifest import FileRecord, Manifest, write_manifest
from safelight.model_card import Family, ModelCard
from tests.unit.fake_checkpoint import (
    CARD,
    MODEL_INDEX,
    SHARDS,
    TENSOR_BYTES,
    TRANSFORMER_FILE,
    WEIGHT_BYTES,
    safetensors_bytes,
    write_checkpoint,
    write_json,
    write_safetensors,
)

SHARD = "diffusion_pytorch_model-00002-of-00002.safetensors"
INDEX = f"{TRANSFORMER_FILE}.index.json"


def test_a_whole_checkpoint_tells_its_parts_and_bytes(checkpoint_dir: Path) -> None:
    checkpoint = open_checkpoint(str(checkpoint_dir))
    assert checkpoint.weight_bytes == WEIGHT_BYTES
    parts = {
        part.name: (part.library, part.class_name, part.weight_bytes, part.dtype) for part in checkpoint.components
    }
    assert parts == {
        "tokenizer": ("transformers", "CLIPTokenizer", 0, None),
        "tokenizer_2": ("transformers", "T5TokenizerFast", 0, None),
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler", 0, None),
        "text_encoder": ("transformers", "CLIPTextModel", TENSOR_BYTES, "F16"),
        "text_encoder_2": ("transformers", "T5EncoderModel", TENSOR_BYTES, "BF16"),
        "transformer": ("diffusers", "FluxTransformer2DModel", TENSOR_BYTES * SHARDS, "BF16"),
        "vae": ("diffusers", "AutoencoderKL", TENSOR_BYTES, "F32"),
    }


def test_the_path_is_absolute_so_that_the_worker_finds_it(
    checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint_dir.parent)
    assert open_checkpoint(checkpoint_dir.name).path == checkpoint_dir.resolve()


def test_a_tilde_is_the_home_directory(checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(checkpoint_dir.parent))
    assert open_checkpoint(f"~/{checkpoint_dir.name}").path == checkpoint_dir.resolve()


def test_its_own_card_wins(checkpoint_dir: Path) -> None:
    card = open_checkpoint(str(checkpoint_dir)).card
    assert (card.id, card.default_width, card.default_num_inference_steps) == ("test/tiny", 64, 4)


def test_without_a_card_guidance_embeds_mean_dev(tmp_path: Path) -> None:
    model = str(write_checkpoint(tmp_path / "dev", card=None, guidance_embeds=True))
    card = open_checkpoint(model).card
    assert (card.id, card.title) == (model, "FLUX.1-dev")
    assert (card.default_num_inference_steps, card.default_guidance_scale, card.max_sequence_length) == (28, 3.5, 512)
    assert (card.default_width, card.default_height) == (1024, 1024)


def test_without_guidance_embeds_it_is_schnell(tmp_path: Path) -> None:
    card = open_checkpoint(str(write_checkpoint(tmp_path / "schnell", card=None, guidance_embeds=False))).card
    assert card.title == "FLUX.1-schnell"
    assert (card.default_num_inference_steps, card.default_guidance_scale, card.max_sequence_length) == (4, None, 256)
    assert not card.has_guidance


@pytest.mark.parametrize(
    "model", ["", "no/such/model", "black-forest-labs/FLUX.1-dev", "a\0b", "x" * 5000, "~nobody-of-that-name/x"]
)
def test_no_such_model_names_it_and_the_remedy(model: str) -> None:
    with pytest.raises(CheckpointNotFound) as caught:
        open_checkpoint(model or "/no/such/directory")
    assert EMBEDDED_MODEL in caught.value.message


@pytest.mark.parametrize("model", ["acme/tiny", "acme/tiny@main", "acme/tiny@v1.0", "acme/tiny@refs/pr/1"])
def test_a_model_that_was_not_pulled_names_the_command_that_pulls_it(model: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound) as caught:
        open_checkpoint(model, tmp_path)
    assert f"run `safelight pull {model}`" in caught.value.message


def _pulled(models: Path, commit: str, revision: str, pulled_at: float) -> Path:
    folder = write_checkpoint(models / "acme" / "tiny" / commit, card=None)
    manifest = Manifest(
        repository="acme/tiny",
        commit=commit,
        revision=revision,
        endpoint="",
        pulled_at=pulled_at,
        files={"model_index.json": FileRecord(0, "")},
    )
    write_manifest(folder, manifest)
    return folder


def test_of_pulled_models_the_last_one_is_meant_or_the_one_of_that_revision(tmp_path: Path) -> None:
    first, second = _pulled(tmp_path, "a" * 40, "main", 2.0), _pulled(tmp_path, "b" * 40, "v1", 1.0)
    (tmp_path / "acme" / "tiny" / ("c" * 40)).mkdir()
    for name, folder in {
        "": first,
        "@v1": second,
        "@main": first,
        "@" + "b" * 40: second,
        "@" + "b" * 7: second,
    }.items():
        checkpoint = open_checkpoint(f"acme/tiny{name}", tmp_path)
        assert (checkpoint.path, checkpoint.card.id) == (folder, "acme/tiny")
    with pytest.raises(CheckpointNotFound, match="safelight pull acme/tiny@bbbbbb`"):
        open_checkpoint("acme/tiny@bbbbbb", tmp_path)


def test_a_directory_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _pulled(tmp_path / "models", "a" * 40, "main", 1.0)
    folder = write_checkpoint(tmp_path / "acme" / "tiny")
    assert open_checkpoint("acme/tiny", tmp_path / "models").path == folder


def test_a_file_is_not_a_checkpoint(checkpoint_dir: Path) -> None:
    with pytest.raises(CheckpointNotFound):
        open_checkpoint(str(checkpoint_dir / "model_index.json"))


def _lacks_its_index(folder: Path) -> str:
    (folder / "model_index.json").unlink()
    return "model_index.json cannot be read: No such file or directory"


def _has_html_for_an_index(folder: Path) -> str:
    (folder / "model_index.json").write_text("<html>Sign in</html>")
    return "model_index.json is not what it should be"


def _has_binary_for_an_index(folder: Path) -> str:
    (folder / "model_index.json").write_bytes(b'{"_class_name": "\xff\xfe"}')
    return "model_index.json is not what it should be"


def _has_a_list_for_an_index(folder: Path) -> str:
    write_json(folder / "model_index.json", [])
    return "model_index.json is not what it should be"


def _has_an_index_nested_without_end(folder: Path) -> str:
    (folder / "model_index.json").write_text('{"_class_name":' + "[" * 100_000)
    return "model_index.json is not what it should be"


def _is_for_another_pipeline(folder: Path) -> str:
    write_json(folder / "model_index.json", MODEL_INDEX | {"_class_name": "FluxControlPipeline"})
    return "model_index.json is for FluxControlPipeline, not FluxPipeline or FluxKontextPipeline or FluxFillPipeline"


def _is_for_a_pipeline_with_another_transformer(folder: Path) -> str:
    write_json(folder / "model_index.json", MODEL_INDEX | {"_class_name": "FluxFillPipeline"})
    return "transformer/config.json and model_index.json are of different models"


def _has_a_card_of_another_family(folder: Path) -> str:
    write_json(folder / "model_index.json", MODEL_INDEX | {"_class_name": "FluxKontextPipeline"})
    return "safelight.json says family dev, model_index.json is of kontext"


def _names_no_pipeline(folder: Path) -> str:
    write_json(folder / "model_index.json", {})
    return "model_index.json is for None, not FluxPipeline"


def _names_a_wrong_class(folder: Path) -> str:
    write_json(folder / "model_index.json", MODEL_INDEX | {"text_encoder_2": ["transformers", "BertModel"]})
    return "names ['transformers', 'BertModel'] as text_encoder_2: transformers T5EncoderModel is what FLUX.1 uses"


def _names_a_class_of_another_library(folder: Path) -> str:
    write_json(folder / "model_index.json", MODEL_INDEX | {"vae": ["evil_package", "AutoencoderKL"]})
    return "names ['evil_package', 'AutoencoderKL'] as vae"


def _lacks_a_component_in_its_index(folder: Path) -> str:
    write_json(folder / "model_index.json", {key: value for key, value in MODEL_INDEX.items() if key != "vae"})
    return "names None as vae"


def _names_a_component_null(folder: Path) -> str:
    write_json(folder / "model_index.json", MODEL_INDEX | {"text_encoder": [None, None]})
    return "names [None, None] as text_encoder"


def _lacks_a_tokenizer_directory(folder: Path) -> str:
    (folder / "tokenizer_2" / "config.json").unlink()
    (folder / "tokenizer_2").rmdir()
    return "tokenizer_2 is missing"


def _lacks_a_config(folder: Path) -> str:
    (folder / "vae" / "config.json").unlink()
    return "vae/config.json cannot be read"


def _lacks_weights(folder: Path) -> str:
    (folder / "vae" / TRANSFORMER_FILE).unlink()
    return f"vae/{TRANSFORMER_FILE} is missing (only safetensors are loaded)"


def _has_pickled_weights_only(folder: Path) -> str:
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "pytorch_model.bin")
    return "text_encoder/model.safetensors is missing (only safetensors are loaded)"


def _lacks_a_shard(folder: Path) -> str:
    (folder / "transformer" / SHARD).unlink()
    return f"transformer/{SHARD} cannot be read: No such file or directory"


def _has_a_truncated_shard(folder: Path) -> str:
    path = folder / "transformer" / SHARD
    path.write_bytes(path.read_bytes()[:-1])
    return f"transformer/{SHARD} is truncated"


def _has_a_shard_with_trailing_bytes(folder: Path) -> str:
    with (folder / "transformer" / SHARD).open("ab") as file:
        file.write(b"\0")
    return f"transformer/{SHARD} is longer than its header says"


def _has_a_shard_without_its_tensor(folder: Path) -> str:
    write_safetensors(folder / "transformer" / SHARD, "BF16", name="another")
    return f"transformer/{SHARD} lacks the tensor block.1 that {INDEX} promises"


def _has_a_shard_with_another_tensor(folder: Path) -> str:
    tensors = {
        name: {"dtype": "BF16", "shape": [4], "data_offsets": [at, at + 8]} for name, at in (("block.1", 0), ("b", 8))
    }
    (folder / "transformer" / SHARD).write_bytes(safetensors_bytes(tensors, bytes(16)))
    return f"transformer/{SHARD} has the tensor b that {INDEX} does not know"


def _has_an_lfs_pointer_for_a_shard(folder: Path) -> str:
    (folder / "transformer" / SHARD).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n")
    return f"transformer/{SHARD} is not a safetensors file"


def _has_html_for_weights(folder: Path) -> str:
    (folder / "vae" / TRANSFORMER_FILE).write_text("<!DOCTYPE html>\n<html><head><title>404</title></head></html>")
    return f"vae/{TRANSFORMER_FILE} is not a safetensors file"


def _points_outside_with_dots(folder: Path) -> str:
    return _points_to(folder, "../vae/diffusion_pytorch_model.safetensors")


def _points_outside_with_a_root(folder: Path) -> str:
    return _points_to(folder, "/etc/passwd")


def _points_to(folder: Path, shard: str) -> str:
    write_json(folder / "transformer" / INDEX, {"weight_map": {"block.0": shard}})
    return f"{INDEX} points outside its folder: {shard!r}"


def _points_to_its_parent(folder: Path) -> str:
    write_json(folder / "transformer" / INDEX, {"weight_map": {"block.0": ".."}})
    return "cannot be read: Is a directory"


def _has_an_index_without_a_map(folder: Path) -> str:
    write_json(folder / "transformer" / INDEX, {"weights": {}})
    return f"{INDEX} is not what it should be"


def _has_an_index_of_a_million_tensors(folder: Path) -> str:
    write_json(folder / "transformer" / INDEX, {"weight_map": {f"block.{i}": f"{i}.safetensors" for i in range(10**6)}})
    return f"{INDEX} is not what it should be: it has "


def _points_into_a_folder(folder: Path) -> str:
    return _points_to(folder, f"sub/{SHARD}")


def _has_a_card_of_the_wrong_shape(folder: Path) -> str:
    write_json(folder / "safelight.json", CARD | {"default_width": "64"})
    return "safelight.json is not what it should be"


DAMAGE: list[Callable[[Path], str]] = [
    damage for name, damage in sorted(globals().items()) if name.startswith(("_has_", "_lacks_", "_is_", "_names_"))
] + [_points_into_a_folder, _points_outside_with_dots, _points_outside_with_a_root, _points_to_its_parent]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__.strip("_"))
def test_a_broken_checkpoint_is_refused_with_the_file_that_is_to_blame(
    damage: Callable[[Path], str], tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "broken")
    sentence = damage(folder)
    start_s = time.process_time()
    with pytest.raises(CheckpointInvalid) as caught:
        open_checkpoint(str(folder))
    assert time.process_time() - start_s < 0.2
    assert sentence in caught.value.message
    assert str(folder) in caught.value.message
    assert "\n" not in caught.value.message


def test_what_the_index_says_beyond_the_known_parts_does_not_matter(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "more")
    extra = {"_diffusers_version": "0.30.0", "image_encoder": [None, None], "feature_extractor": [None, None]}
    write_json(folder / "model_index.json", MODEL_INDEX | extra)
    assert open_checkpoint(str(folder)).weight_bytes == WEIGHT_BYTES


def test_a_symbolic_link_as_in_the_hugging_face_cache_is_followed(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "linked")
    shard = folder / "transformer" / SHARD
    shard.rename(tmp_path / "blob")
    shard.symlink_to(tmp_path / "blob")
    assert open_checkpoint(str(folder)).weight_bytes == WEIGHT_BYTES


def test_the_fake_checkpoint_is_what_it_says(checkpoint_dir: Path) -> None:
    assert json.loads((checkpoint_dir / "safelight.json").read_text()) == CARD


@pytest.mark.parametrize(
    ("name", "has_guidance", "family"),
    [
        ("FLUX.1-Krea-dev", True, Family.KREA),
        ("FLUX.1-dev", True, Family.DEV),
        ("anything", False, Family.SCHNELL),
        ("krea-but-schnell", False, Family.SCHNELL),
    ],
)
def test_the_family_gives_the_defaults(name: str, has_guidance: bool, family: Family, tmp_path: Path) -> None:
    folder = tmp_path / "krea" / name  # the name of a folder above says nothing
    model = str(write_checkpoint(folder, card=None, guidance_embeds=has_guidance))
    assert open_checkpoint(model).card == ModelCard.of_family(family, model)


@pytest.mark.parametrize(
    ("pipeline", "family", "transformer"),
    [
        ("FluxKontextPipeline", Family.KONTEXT, {"in_channels": 64, "out_channels": 64}),
        ("FluxKontextPipeline", Family.KONTEXT, {"in_channels": 64, "out_channels": None}),
        ("FluxFillPipeline", Family.FILL, {"in_channels": 384, "out_channels": 64}),
    ],
)
def test_the_pipelines_class_tells_the_family(
    pipeline: str, family: Family, transformer: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "any", card=None)
    write_json(folder / "model_index.json", MODEL_INDEX | {"_class_name": pipeline})
    write_json(folder / "transformer" / "config.json", {"guidance_embeds": True} | transformer)
    assert open_checkpoint(str(folder)).card == ModelCard.of_family(family, str(folder))
