"""A transformer as one file, in every format: the same tensors and pictures as from a directory, or one sentence."""

from __future__ import annotations

import asyncio
import base64
import io
import math
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from PIL import Image

from safelight.checkpoint import Checkpoint, open_checkpoint
from safelight.checkpoint.flux_names import BLACK_FOREST_LABS, DIFFUSERS
from safelight.config import EMBEDDED_MODEL
from safelight.engine.components import load_components
from safelight.engine.encodings import Quantised
from safelight.engine.load_report import LoadReport
from safelight.engine.model_manager import ModelManager
from safelight.errors import CheckpointInvalid
from safelight.params import GenerationParams
from safelight.protocol import LoadProgress
from safelight.tensor_header import BLOCKS
from tests import single_files
from tests.checkpoints import make_checkpoint
from tests.server_process import ROOT, ServerProcess
from tests.single_files import Tensors, as_black_forest_labs, as_comfyui

CPU = torch.device("cpu")
Format = Callable[[Path, Tensors], Tensors]
"""Writes tensors in the names of Black Forest Labs, and returns what the file means by them."""


def _safetensors(change: Callable[[Mapping[str, torch.Tensor]], tuple[Tensors, Tensors]], finish: Any = dict) -> Format:
    def write(path: Path, tensors: Tensors) -> Tensors:
        held, meant = change(tensors)
        single_files.save(path, finish(held))
        return meant

    return write


def _as_gguf(kind: str) -> Format:
    return lambda path, tensors: single_files.save_gguf(path, tensors, kind)


def _same(tensors: Mapping[str, torch.Tensor]) -> tuple[Tensors, Tensors]:
    return dict(tensors), dict(tensors)


FORMATS: dict[str, Format] = {
    "F32.safetensors": _safetensors(_same),
    "F16.safetensors": _safetensors(single_files.cast(torch.float16)),
    "BF16.safetensors": _safetensors(single_files.cast(torch.bfloat16)),
    "e4m3.safetensors": _safetensors(single_files.cast(torch.float8_e4m3fn)),
    "e5m2.sft": _safetensors(single_files.cast(torch.float8_e5m2)),
    "scaled.safetensors": _safetensors(single_files.scaled_float8),
    "newer-scaled.safetensors": _safetensors(single_files.newer_scaled_float8),
    "all-in-one.safetensors": _safetensors(_same, as_comfyui),
    "all-in-one-scaled.safetensors": _safetensors(single_files.scaled_float8, as_comfyui),
    **{f"{kind}.gguf": _as_gguf(kind) for kind in ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")},
}
TOLERANCE = {
    "F32": 0.0,
    "all-in-one.": 0.0,
    "BF16": 0.1,
    "F16": 0.02,
    "Q8_0": 0.2,
    "scaled": 0.6,
    "e4m3": 0.7,
    "Q5": 1.0,
    "Q4": 2.0,
    "e5m2": 2.0,
}
"""Mean difference of pixels, of 255, from the picture of the weights before they were written in that format."""


@pytest.fixture(scope="module")
def tensors(tiny_checkpoint: Path) -> Tensors:
    return single_files.read_transformer(tiny_checkpoint)


@pytest.fixture(scope="module")
def back(tensors: Tensors) -> Callable[[Tensors], Tensors]:
    """From the names of Black Forest Labs to those of diffusers."""
    return single_files.inverse(as_black_forest_labs, tensors)


@pytest.fixture(scope="module")
def picture_before(tiny_checkpoint: Path) -> np.ndarray[Any, Any]:
    return _picture(open_checkpoint(str(tiny_checkpoint)))


def _open(path: Path, base: Path) -> Checkpoint:
    return open_checkpoint(str(path), None, str(base))


def _load(checkpoint: Checkpoint, seen: list[LoadProgress] | None = None, dtype: torch.dtype = torch.float32) -> Any:
    on_progress = (lambda _: None) if seen is None else seen.append
    report = LoadReport(len(checkpoint.components), checkpoint.weight_bytes, on_progress, threading.Event())
    return load_components(checkpoint, CPU, dtype, report)


def _picture(checkpoint: Checkpoint) -> np.ndarray[Any, Any]:
    params = GenerationParams(
        prompt="a red circle",
        width=64,
        height=64,
        num_inference_steps=3,
        guidance_scale=checkpoint.card.default_guidance_scale,
        max_sequence_length=16,
        seed=1,
    )

    async def draw() -> np.ndarray[Any, Any]:
        async with ModelManager() as manager:
            await manager.load_model(checkpoint, "cpu")
            return np.asarray((await manager.generate_image(params)).images[0]).astype(int)

    return asyncio.run(draw())


def test_the_names_and_pieces_are_those_of_diffusers_own_conversion() -> None:
    """At full width, which its conversion takes for granted; no tensor needs more than one column for it."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    width, rows = 3072, {"modulation.lin": 3, "mod.lin": 6, "qkv": 3, "linear1": 7, "adaLN_modulation.1": 2}
    numbers: dict[str, torch.Tensor] = {}
    for index, name in enumerate(BLACK_FOREST_LABS.names(2, 2, guidance=True)):
        count = width * next((times for ending, times in rows.items() if ending in name), 1)
        numbers[name] = torch.arange(count) + index * 100_000
    expected = convert_flux_transformer_checkpoint_to_diffusers(dict(numbers))
    found: dict[str, torch.Tensor] = {}
    for name, tensor in numbers.items():
        shares = BLACK_FOREST_LABS.shares(name)
        unit, first = len(tensor) // sum(share.parts for share in shares), 0
        for share in shares:
            piece = tensor[first : first + unit * share.parts]
            found[share.layer] = torch.cat(piece.chunk(2)[::-1]) if share.halves_swapped else piece
            first += unit * share.parts
    assert found.keys() == expected.keys() == set(DIFFUSERS.names(2, 2, guidance=True))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_loads_and_draws_as_a_directory_with_the_same_numbers(
    name: str,
    tensors: Tensors,
    back: Callable[[Tensors], Tensors],
    picture_before: np.ndarray[Any, Any],
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / name
    meant = back(FORMATS[name](path, as_black_forest_labs(tensors)))
    checkpoint = _open(path, tiny_checkpoint)
    seen: list[LoadProgress] = []
    found = _load(checkpoint, seen)["transformer"].state_dict()
    assert found.keys() == meant.keys()
    assert all(torch.equal(found[key], meant[key]) for key in meant)
    assert seen[-1].bytes_done == seen[-1].bytes_total == checkpoint.weight_bytes
    assert seen[-1].component_bytes["transformer"] < path.stat().st_size
    picture = _picture(checkpoint)
    folder = single_files.with_transformer(tmp_path / "folder", tiny_checkpoint, meant)
    assert np.array_equal(picture, _picture(open_checkpoint(str(folder))))
    tolerance = next(limit for kind, limit in TOLERANCE.items() if kind in name)
    assert np.abs(picture - picture_before).mean() <= tolerance


def test_names_of_diffusers_load_as_well(tensors: Tensors, tiny_checkpoint: Path, tmp_path: Path) -> None:
    found = _load(_open(single_files.save(tmp_path / "a.safetensors", tensors), tiny_checkpoint))["transformer"]
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in found.state_dict().items())


@pytest.mark.parametrize("name", ["scaled.safetensors", "Q8_0.gguf"])
def test_they_become_the_dtype_of_the_engine(
    name: str, tensors: Tensors, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    FORMATS[name](tmp_path / name, as_black_forest_labs(tensors))
    found = _load(_open(tmp_path / name, tiny_checkpoint), dtype=torch.bfloat16)["transformer"]
    assert {parameter.dtype for parameter in found.parameters()} == {torch.bfloat16}


def test_large_blocks_are_cut_where_they_end(
    tensors: Tensors,
    back: Callable[[Tensors], Tensors],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("safelight.engine.weights.CHUNK_BYTES", 1000)
    meant = back(single_files.save_gguf(tmp_path / "a.gguf", as_black_forest_labs(tensors), "Q5_0"))
    found = _load(_open(tmp_path / "a.gguf", tiny_checkpoint))["transformer"].state_dict()
    assert all(torch.equal(found[key], meant[key]) for key in meant)


def test_schnell_is_served_with_the_base_of_dev(tiny_checkpoint: Path, tmp_path: Path) -> None:
    schnell = make_checkpoint(tmp_path / "schnell", guidance_embeds=False)
    tensors = single_files.read_transformer(schnell)
    path = single_files.save(tmp_path / "a.safetensors", as_black_forest_labs(tensors))
    checkpoint = _open(path, tiny_checkpoint)
    assert not checkpoint.card.has_guidance
    parts = _load(checkpoint)
    assert (parts["scheduler"].config.shift, parts["scheduler"].config.use_dynamic_shifting) == (1.0, False)
    assert _picture(checkpoint).std() > 0


@pytest.mark.parametrize("name", [name for name, block in BLOCKS.items() if block.values > 1])
def test_blocks_mean_what_ggufs_own_library_says(name: str) -> None:
    """Of any bytes, among them scales that are no numbers."""
    block, kind = BLOCKS[name], gguf.GGMLQuantizationType[name]
    raw = np.random.default_rng(0).integers(0, 256, (64, block.size_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, kind).reshape(-1)
    found = Quantised(name).decode(torch.from_numpy(raw).reshape(-1)).numpy()
    assert found.dtype == np.float32
    assert np.isfinite(expected).mean() > 0.5
    assert np.array_equal(found, expected, equal_nan=True)


def _is_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _is_a_web_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><title>Sign in</title>")


def _lacks_a_tensor(tensors: Tensors) -> None:
    del tensors["single_blocks.0.linear1.bias"]


def _has_a_tensor_more(tensors: Tensors) -> None:
    tensors["img_in.lora"] = torch.zeros(64)


def _has_a_wider_tensor(tensors: Tensors) -> None:
    tensors["double_blocks.0.img_mlp.2.weight"] = torch.zeros(32, 160)


def _has_more_rows_than_fit(tensors: Tensors) -> None:
    tensors["double_blocks.0.img_attn.qkv.weight"] = torch.zeros(97, 32)


def _has_nan(tensors: Tensors) -> None:
    tensors["double_blocks.0.txt_attn.qkv.bias"][40] = math.nan


def _has_infinity(tensors: Tensors) -> None:
    tensors["final_layer.adaLN_modulation.1.bias"][0] = math.inf


CHANGES: dict[Callable[[Tensors], None], str] = {
    _lacks_a_tensor: "lacks 1 tensors, the first is single_blocks.0.linear1.bias",
    _has_a_tensor_more: "the first is img_in.lora",
    _has_a_wider_tensor: "img_mlp.2.weight gives transformer_blocks.0.ff.net.2.weight the shape [32, 160]",
    _has_more_rows_than_fit: "img_attn.qkv.weight of the shape [97, 32], which is not 3 equal parts",
    _has_nan: "has NaN or infinity in 1 weights, the first is double_blocks.0.txt_attn.qkv.bias",
    _has_infinity: "has NaN or infinity in 1 weights, the first is final_layer.adaLN_modulation.1.bias",
}


def _refusal(path: Path, base: Path) -> str:
    with pytest.raises(CheckpointInvalid) as caught:
        _load(_open(path, base))
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("name", ["F32.safetensors", "F16.gguf"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_tensors_that_are_not_right_are_refused_with_the_file_named(
    change: Callable[[Tensors], None], name: str, tensors: Tensors, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    changed = {key: tensor.clone() for key, tensor in as_black_forest_labs(tensors).items()}
    change(changed)
    FORMATS[name](tmp_path / name, changed)
    assert CHANGES[change] in _refusal(tmp_path / name, tiny_checkpoint)


@pytest.mark.parametrize("name", ["F32.safetensors", "Q8_0.gguf"])
@pytest.mark.parametrize("damage", [_is_truncated, _is_a_web_page], ids=lambda damage: damage.__name__)
def test_files_that_are_not_whole_are_refused_with_the_file_named(
    damage: Callable[[Path], None], name: str, tensors: Tensors, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    FORMATS[name](tmp_path / name, as_black_forest_labs(tensors))
    damage(tmp_path / name)
    _refusal(tmp_path / name, tiny_checkpoint)


def test_nan_in_the_scale_of_a_block_or_a_tensor_is_found(
    tensors: Tensors, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    held, _ = single_files.scaled_float8(as_black_forest_labs(tensors))
    held["img_in.scale_weight"][0] = math.nan
    message = _refusal(single_files.save(tmp_path / "a.safetensors", held), tiny_checkpoint)
    assert "the first is img_in.weight" in message
    path = tmp_path / "a.gguf"
    single_files.save_gguf(path, as_black_forest_labs(tensors), "Q8_0")
    (stored,) = (t for t in gguf.GGUFReader(path).tensors if t.name == "single_blocks.0.linear2.weight")
    data = bytearray(path.read_bytes())
    data[stored.data_offset : stored.data_offset + 2] = np.float16(math.nan).tobytes()
    path.write_bytes(data)
    assert "the first is single_blocks.0.linear2.weight" in _refusal(path, tiny_checkpoint)


def test_a_base_of_another_model_is_refused_by_name(tensors: Tensors, tmp_path: Path) -> None:
    path = single_files.save(tmp_path / "a.safetensors", as_black_forest_labs(tensors))
    message = _refusal(path, open_checkpoint(EMBEDDED_MODEL).path)
    assert "its heads have 16 channels" in message or "the transformer takes" in message


def _shapes_model(path: Path, write: Format) -> Path:
    """The embedded model's transformer, with its card beside it under another name."""
    shapes = open_checkpoint(EMBEDDED_MODEL).path
    write(path, as_black_forest_labs({n: t.float() for n, t in single_files.read_transformer(shapes).items()}))
    shutil.copy(shapes / "safelight.json", path.with_suffix(".safelight.json"))
    return path


@pytest.mark.parametrize("name", ["Q8_0.gguf", "all-in-one-scaled.safetensors"])
def test_a_server_serves_it_as_any_other_model(name: str, tmp_path: Path) -> None:
    path = _shapes_model(tmp_path / name, FORMATS[name])
    arguments = ("--model", str(path), "--base-model", EMBEDDED_MODEL, "--device", "cpu", "--batch-limit", "1")
    with ServerProcess(tmp_path / "data", *arguments) as server:
        server.wait_until_ready()
        status = server.status()
        assert status["model"] == str(path)
        (model,) = server.get("/v1/models").json()["data"]
        assert model["id"] == "safelight/shapes"
        (worker,) = status["workers"]
        checkpoint = _open(path, open_checkpoint(EMBEDDED_MODEL).path)
        assert worker["bytes_done"] == worker["bytes_total"] == checkpoint.weight_bytes
        asked = {"prompt": "a large red circle on a white background", "seed": 1, "size": "256x256"}
        body = server.http.post("/v1/images/generations", json=asked).json()
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"]))).convert("RGB"))
        red, green, blue = picture[128, 128]
        assert red > 150 and green < 100 and blue < 100
        assert picture[8, 8].min() > 200
        assert server.stop() == 0


def _doctor(*arguments: str, data_dir: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "safelight", "doctor", "--port", "0", "--device", "cpu"]
    return subprocess.run(
        [*command, "--data-dir", str(data_dir), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_doctor_knows_single_files(tensors: Tensors, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "flux1-krea-dev-Q8_0.gguf"
    single_files.save_gguf(path, as_black_forest_labs(tensors), "Q8_0")
    run = _doctor("--model", str(path), "--base-model", str(tiny_checkpoint), data_dir=tmp_path)
    assert run.returncode == 0, run.stdout
    assert f"ok    model {path}: FLUX.1-Krea-dev, every file is whole" in run.stdout
    _is_truncated(path)
    run = _doctor("--model", str(path), "--base-model", str(tiny_checkpoint), data_dir=tmp_path)
    assert run.returncode == 1
    assert f"FAIL  {path} is truncated" in run.stdout
