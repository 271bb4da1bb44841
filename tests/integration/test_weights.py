"""Weights straight from their files: the same as the libraries load, or the libraries load them."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from safelight.checkpoint import Checkpoint, Component, open_checkpoint
from safelight.checkpoint.stored_tensors import stored_tensors
from safelight.engine import components, weights
from safelight.engine.components import load_components
from safelight.engine.load_report import LoadReport
from safelight.engine.transfer import Chunk, Transfer
from safelight.engine.weight_files import read_ahead
from safelight.errors import CheckpointInvalid, JobCancelled
from safelight.protocol import LoadProgress
from tests.checkpoints import edit_json

CPU = torch.device("cpu")
ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
WITH_WEIGHTS = ("text_encoder", "text_encoder_2", "transformer", "vae")


@pytest.fixture
def slow_way(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the components that their classes' ``from_pretrained`` loaded."""
    names: list[str] = []
    load = components._from_pretrained

    def watched(made_by: Any, folder: Path, component: Any) -> torch.nn.Module:
        names.append(component.name)
        return load(made_by, folder, component)

    monkeypatch.setattr(components, "_from_pretrained", watched)
    return names


def _load(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    on_progress: Callable[[LoadProgress], None] = lambda _: None,
    device: torch.device = CPU,
) -> dict[str, Any]:
    checkpoint = open_checkpoint(str(folder))
    return load_components(checkpoint, device, dtype, _report(checkpoint, on_progress))


def _report(checkpoint: Checkpoint, on_progress: Callable[[LoadProgress], None]) -> LoadReport:
    return LoadReport(len(checkpoint.components), checkpoint.weight_bytes, on_progress, threading.Event())


def _reference(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return {name: getattr(pipeline, name) for name in WITH_WEIGHTS}


def _rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Changes one safetensors file, and its index with it."""
    from safetensors.torch import load_file, save_file

    tensors = change({name: tensor.clone() for name, tensor in load_file(path).items()})
    save_file(tensors, path)
    for index in path.parent.glob("*.index.json"):
        weight_map = json.loads(index.read_text())["weight_map"]
        others = {name: shard for name, shard in weight_map.items() if shard != path.name}
        edit_json(index, weight_map=others | dict.fromkeys(tensors, path.name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "device", [CPU, pytest.param(torch.device("cuda:0"), marks=[pytest.mark.gpu, ON_CUDA])], ids=str
)
def test_every_tensor_equals_that_of_from_pretrained(
    device: torch.device, dtype: torch.dtype, tiny_checkpoint: Path, slow_way: list[str]
) -> None:
    parts, reference = _load(tiny_checkpoint, dtype, device=device), _reference(tiny_checkpoint, dtype)
    for name in WITH_WEIGHTS:
        module, expected = parts[name], reference[name]
        assert type(module) is type(expected)
        found = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
        wanted = dict(expected.named_parameters(remove_duplicate=False)) | dict(expected.named_buffers())
        assert found.keys() == wanted.keys()
        for key, tensor in found.items():
            assert tensor.dtype == wanted[key].dtype, key
            assert tensor.device == device, key
            assert torch.equal(tensor.cpu(), wanted[key]), key
            assert not tensor.requires_grad
        assert not any(part.training for part in module.modules())
    assert not slow_way


def test_the_embedded_model_takes_the_fast_way_and_keeps_what_is_tied_tied(slow_way: list[str]) -> None:
    checkpoint = open_checkpoint("safelight/shapes")
    parts = _load(checkpoint.path)
    assert not slow_way
    t5, reference = parts["text_encoder_2"], _reference(checkpoint.path, torch.float32)["text_encoder_2"]
    assert t5.shared.weight is t5.encoder.embed_tokens.weight
    assert torch.equal(t5.shared.weight, reference.shared.weight)
    assert t5.config._attn_implementation == reference.config._attn_implementation


def test_names_from_before_transformers_5_take_the_fast_way(broken_checkpoint: Path, slow_way: list[str]) -> None:
    for path in (broken_checkpoint / "text_encoder").glob("*.safetensors"):
        _rewrite(path, lambda tensors: {f"text_model.{name}": tensor for name, tensor in tensors.items()})
    _same(_load(broken_checkpoint)["text_encoder"], _reference(broken_checkpoint, torch.float32)["text_encoder"])
    assert not slow_way


def _also_has_position_ids(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"text_model.embeddings.position_ids": torch.arange(77)[None]}


def test_what_does_not_match_exactly_is_loaded_by_its_class_and_equal_all_the_same(
    broken_checkpoint: Path, slow_way: list[str]
) -> None:
    _rewrite(next((broken_checkpoint / "text_encoder").glob("*.safetensors")), _also_has_position_ids)
    seen: list[LoadProgress] = []
    parts = _load(broken_checkpoint, on_progress=seen.append)
    assert slow_way == ["text_encoder"]
    _same(parts["text_encoder"], _reference(broken_checkpoint, torch.float32)["text_encoder"])
    assert seen[-1].bytes_done == seen[-1].bytes_total
    assert not any(parameter.requires_grad for parameter in parts["text_encoder"].parameters())


def _same(module: torch.nn.Module, expected: torch.nn.Module) -> None:
    found, wanted = module.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_files_of_several_dtypes_are_read_in_stretches_of_one(broken_checkpoint: Path, slow_way: list[str]) -> None:
    def mix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kinds = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
        return {name: tensor.to(kinds[index % 4]) for index, (name, tensor) in enumerate(sorted(tensors.items()))}

    folder = broken_checkpoint / "vae"
    for path in folder.glob("*.safetensors"):
        _rewrite(path, mix)
    component = _component(broken_checkpoint, "vae")
    stored, files = stored_tensors(component), component.files
    expected = {name: tensor for path in files for name, tensor in _read_all(path).items()}
    found = _load(broken_checkpoint)["vae"].state_dict()
    assert not slow_way
    assert all(torch.equal(found[name], expected[name].float()) for name in expected)
    places = {name: torch.empty(tensor.shape) for name, tensor in stored.items()}
    chunks = list(weights.chunks("vae", stored, places))
    assert sum(chunk.file_bytes for chunk in chunks) == sum(path.stat().st_size - _start(path) for path in files)


def _component(folder: Path, name: str) -> Component:
    return next(component for component in open_checkpoint(str(folder)).components if component.name == name)


def _read_all(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(path))


def _start(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def test_large_tensors_are_cut_and_small_ones_share_a_chunk(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "CHUNK_BYTES", 1024)
    stored = stored_tensors(_component(tiny_checkpoint, "transformer"))
    places = {name: torch.empty(tensor.shape) for name, tensor in stored.items()}
    chunks = list(weights.chunks("transformer", stored, places))
    assert max(chunk.file_bytes for chunk in chunks) == 1024
    assert max(len(chunk.targets) for chunk in chunks) > 1
    assert sum(chunk.file_bytes for chunk in chunks) == sum(place.numel() * 4 for place in places.values())
    parts = _load(tiny_checkpoint)
    _same(parts["transformer"], _reference(tiny_checkpoint, torch.float32)["transformer"])


def test_progress_names_what_is_under_way_and_ends_with_everything(tiny_checkpoint: Path) -> None:
    seen: list[LoadProgress] = []
    _load(tiny_checkpoint, on_progress=seen.append)
    for counted in ("bytes_done", "components_done"):
        values = [getattr(progress, counted) for progress in seen]
        assert values == sorted(values), counted
    assert (seen[-1].components_done, seen[-1].bytes_done) == (7, seen[-1].bytes_total)
    assert {progress.component for progress in seen} >= set(WITH_WEIGHTS)
    assert {progress.phase for progress in seen} == {"weights", "to_device"}


def test_a_cancelled_load_leaves_no_thread_behind(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    cancelled = threading.Event()

    def on_progress(progress: LoadProgress) -> None:
        if progress.component == "vae":
            cancelled.set()

    report = LoadReport(7, checkpoint.weight_bytes, on_progress, cancelled)
    with pytest.raises(JobCancelled):
        load_components(checkpoint, CPU, torch.float32, report)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read_")]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.unlink(), "of-00002.safetensors cannot be read: No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "of-00002.safetensors became shorter"),
    ],
    ids=["gone", "shrunk"],
)
def test_a_file_that_goes_after_its_header_was_read_is_named(
    damage: Callable[[Path], object], sentence: str, broken_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Transfer.send
    path = broken_checkpoint / "vae" / "diffusion_pytorch_model-00002-of-00002.safetensors"

    def damaged(self: Transfer, chunks: list[Chunk]) -> None:
        if any(chunk.path == path for chunk in chunks):
            damage(path)
        send(self, chunks)

    monkeypatch.setattr(Transfer, "send", damaged)
    with pytest.raises(CheckpointInvalid, match=sentence):
        _load(broken_checkpoint)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read_")]


def test_reading_ahead_reads_every_byte_and_returns_at_once(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    sendfile = os.sendfile

    def counted(*arguments: Any) -> int:
        sent.append(sendfile(*arguments))
        return sent[-1]

    monkeypatch.setattr(os, "sendfile", counted)
    read_ahead(open_checkpoint(str(tiny_checkpoint)))
    _wait_for_read_ahead()
    assert sum(sent) == sum(path.stat().st_size for path in tiny_checkpoint.rglob("*.safetensors"))


def test_reading_ahead_leaves_missing_files_to_the_loader(broken_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(str(broken_checkpoint))
    shutil.rmtree(broken_checkpoint)
    read_ahead(checkpoint)
    _wait_for_read_ahead()


def test_reading_ahead_does_not_push_out_what_it_read(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Free:
        available = 1000

    monkeypatch.setattr(psutil, "virtual_memory", Free)
    read_ahead(open_checkpoint(str(tiny_checkpoint)))
    assert not _reading_ahead()


def _reading_ahead() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("read_ahead")]


def _wait_for_read_ahead() -> None:
    for thread in _reading_ahead():
        thread.join(10)
    assert not _reading_ahead()
