"""Damage of every kind to a real checkpoint: none is loaded as if nothing were, and the sentence names the file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from safelight.checkpoint import open_checkpoint
from safelight.engine.components import load_components
from safelight.engine.load_report import LoadReport
from safelight.errors import CheckpointInvalid
from safelight.hub.manifest import FileRecord, Manifest, write_manifest
from safelight.hub.verification import verify
from tests.checkpoints import edit_json
from tests.hub_server import folder_content
from tests.unit.fake_checkpoint import safetensors_bytes

SHARD = "vae/diffusion_pytorch_model-00001-of-00002.safetensors"
OTHER = "vae/diffusion_pytorch_model-00002-of-00002.safetensors"
INDEX = "vae/diffusion_pytorch_model.safetensors.index.json"


def _rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def is_truncated(folder: Path) -> str:
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-100])
    return SHARD


def is_missing(folder: Path) -> str:
    (folder / SHARD).unlink()
    return SHARD


def is_empty(folder: Path) -> str:
    (folder / SHARD).write_bytes(b"")
    return SHARD


def is_a_web_page(folder: Path) -> str:
    (folder / SHARD).write_text("<!DOCTYPE html><title>Sign in</title>")
    return SHARD


def is_an_lfs_pointer(folder: Path) -> str:
    (folder / SHARD).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n")
    return SHARD


def is_a_header_bomb(folder: Path) -> str:
    entry = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    (folder / SHARD).write_bytes(safetensors_bytes(b"{" + b",".join(entry % i for i in range(1_400_000)) + b"}"))
    return SHARD


def is_too_long(folder: Path) -> str:
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes() + b"\0")
    return SHARD


def has_a_flipped_bit(folder: Path) -> str:
    data = bytearray((folder / SHARD).read_bytes())
    data[-100] ^= 1
    (folder / SHARD).write_bytes(data)
    return SHARD


def has_swapped_shards(folder: Path) -> str:
    first, second = (folder / SHARD).read_bytes(), (folder / OTHER).read_bytes()
    (folder / SHARD).write_bytes(second)
    (folder / OTHER).write_bytes(first)
    return SHARD


def has_nan(folder: Path) -> str:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        next(iter(tensors.values())).view(-1)[0] = float("nan")

    _rewrite(folder / SHARD, poison)
    return SHARD


def has_infinity(folder: Path) -> str:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        next(iter(tensors.values())).view(-1)[-1] = float("-inf")

    _rewrite(folder / SHARD, poison)
    return SHARD


def lacks_a_tensor_that_its_index_has(folder: Path) -> str:
    _rewrite(folder / SHARD, lambda tensors: tensors.popitem())
    return SHARD


def lacks_a_tensor(folder: Path) -> str:
    names: list[str] = []
    _rewrite(folder / SHARD, lambda tensors: names.append(tensors.popitem()[0]))
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    edit_json(folder / INDEX, weight_map={name: file for name, file in weight_map.items() if name not in names})
    return SHARD


def has_one_tensor_more(folder: Path) -> str:
    _rewrite(folder / SHARD, lambda tensors: tensors.update(another=torch.zeros(1)))
    return SHARD


def has_one_tensor_more_and_in_its_index(folder: Path) -> str:
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    edit_json(folder / INDEX, weight_map=weight_map | {"another": Path(SHARD).name})
    return has_one_tensor_more(folder)


def has_a_tensor_of_another_shape(folder: Path) -> str:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        name = next(iter(tensors))
        tensors[name] = torch.cat([tensors[name], tensors[name]])

    _rewrite(folder / SHARD, widen)
    return SHARD


def has_the_config_of_another_size(folder: Path) -> str:
    edit_json(folder / "vae/config.json", latent_channels=8)
    return "vae/config.json"


def has_no_config(folder: Path) -> str:
    (folder / "vae/config.json").unlink()
    return "vae/config.json"


def has_another_number_in_its_config(folder: Path) -> str:
    edit_json(folder / "vae/config.json", scaling_factor=0.5)
    return "vae/config.json"


Damage = Callable[[Path], str]
DAMAGE: list[Damage] = [
    is_truncated,
    is_missing,
    is_empty,
    is_a_web_page,
    is_an_lfs_pointer,
    is_a_header_bomb,
    is_too_long,
    has_a_flipped_bit,
    has_swapped_shards,
    has_nan,
    has_infinity,
    lacks_a_tensor_that_its_index_has,
    lacks_a_tensor,
    has_one_tensor_more,
    has_one_tensor_more_and_in_its_index,
    has_a_tensor_of_another_shape,
    has_the_config_of_another_size,
    has_no_config,
    has_another_number_in_its_config,
]
KNOWN_BY_HASH_ONLY = {has_a_flipped_bit, has_another_number_in_its_config}
FOLDER_ONLY = {
    lacks_a_tensor,
    has_one_tensor_more_and_in_its_index,
    has_a_tensor_of_another_shape,
    has_the_config_of_another_size,
}
"""Without a manifest, which file is to blame cannot be told."""


def give_manifest(folder: Path) -> None:
    files = {
        name: FileRecord(len(data), hashlib.sha256(data).hexdigest()) for name, data in folder_content(folder).items()
    }
    manifest = Manifest(repository="acme/tiny", commit="c" * 40, revision="main", endpoint="", pulled_at=0, files=files)
    write_manifest(folder, manifest)


def _load(folder: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(str(folder))
    report = LoadReport(len(checkpoint.components), checkpoint.weight_bytes, lambda _: None, threading.Event())
    return load_components(checkpoint, torch.device("cpu"), torch.float32, report)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_with_a_manifest_all_damage_is_known_by_its_file_before_anything_loads(
    damage: Damage, broken_checkpoint: Path
) -> None:
    give_manifest(broken_checkpoint)
    verify(broken_checkpoint)
    name = damage(broken_checkpoint)
    with pytest.raises(CheckpointInvalid) as caught:
        verify(broken_checkpoint)
    assert str(broken_checkpoint / name) in caught.value.message
    assert f"`safelight pull acme/tiny@{'c' * 40}` repairs it" in caught.value.message


@pytest.mark.parametrize(
    "damage", [damage for damage in DAMAGE if damage not in KNOWN_BY_HASH_ONLY], ids=lambda damage: damage.__name__
)
def test_without_one_it_is_refused_at_the_latest_when_it_loads(damage: Damage, broken_checkpoint: Path) -> None:
    name = damage(broken_checkpoint)
    with pytest.raises(CheckpointInvalid) as caught:
        _load(broken_checkpoint)
    place = broken_checkpoint / name
    assert str(place.parent if damage in FOLDER_ONLY else place) in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("damage", KNOWN_BY_HASH_ONLY, ids=lambda damage: damage.__name__)
def test_what_only_a_hash_can_tell_loads_without_one(damage: Damage, broken_checkpoint: Path) -> None:
    damage(broken_checkpoint)
    assert _load(broken_checkpoint)


def test_nothing_is_left_without_values(tiny_checkpoint: Path) -> None:
    for name, part in _load(tiny_checkpoint).items():
        if isinstance(part, torch.nn.Module):
            tensors = [*part.parameters(), *part.buffers()]
            assert not any(tensor.is_meta for tensor in tensors), name
            assert all(tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()), name


def _tempts(folder: Path, canary: Path) -> None:
    """Every place from which a library has been known to run a model's code, or to fetch some."""
    program = f"open({str(canary)!r}, 'w').close()\nclass Model: pass\n"
    for place in (folder, *(folder / name for name in ("transformer", "text_encoder", "tokenizer", "vae"))):
        for name in ("pipeline.py", "model.py", "modeling.py"):
            (place / name).write_text(program)
    elsewhere = {"AutoModel": "model.Model", "AutoConfig": "model.Model", "AutoTokenizer": ["model.Model", None]}
    remote = {"auto_map": elsewhere, "trust_remote_code": True, "custom_pipeline": "pipeline"}
    edit_json(folder / "model_index.json", **remote)
    for name in ("text_encoder/config.json", "text_encoder_2/config.json"):
        edit_json(folder / name, **remote, _attn_implementation_internal="evil/kernel", _attn_implementation="eager")
    for name in ("transformer/config.json", "vae/config.json", "tokenizer/tokenizer_config.json"):
        edit_json(folder / name, **remote)


def test_code_in_a_model_is_not_run_and_nothing_is_fetched(
    broken_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        asked.append(arguments)
        raise OSError("no network here")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    _tempts(broken_checkpoint, tmp_path / "canary")
    with contextlib.suppress(CheckpointInvalid):
        _load(broken_checkpoint)
    assert not (tmp_path / "canary").exists()
    assert not asked
