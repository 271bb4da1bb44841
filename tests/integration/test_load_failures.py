"""A model that cannot load: the front stays up, the sentence names the file, a repaired model loads on request."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import edit_json
from tests.server_process import ServerProcess


def _remove_a_shard(folder: Path) -> None:
    (folder / "transformer" / "diffusion_pytorch_model-00003-of-00017.safetensors").unlink()


def _truncate_a_shard(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _name_a_wrong_class(folder: Path) -> None:
    edit_json(folder / "model_index.json", text_encoder_2=["transformers", "BertModel"])


def _name_another_pipeline(folder: Path) -> None:
    edit_json(folder / "model_index.json", _class_name="StableDiffusionPipeline")


def _demand_a_terabyte(folder: Path) -> None:
    """A file that says, and by its (sparse) size also shows, that it holds 1 TB."""
    size = 10**12
    header = json.dumps({"weight": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    shutil.rmtree(folder / "text_encoder_2")
    (folder / "text_encoder_2").mkdir()
    (folder / "text_encoder_2" / "config.json").write_text("{}")
    with (folder / "text_encoder_2" / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)


def _change_a_shape(folder: Path) -> None:
    edit_json(folder / "transformer" / "config.json", num_attention_heads=4)


def _drop_a_tensor(folder: Path) -> None:
    """Consistent files, one weight short: the libraries load this without an error."""
    from safetensors.torch import load_file, save_file

    index_path = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    shard = index["weight_map"].pop("x_embedder.weight")
    tensors = load_file(folder / "transformer" / shard)
    del tensors["x_embedder.weight"]
    save_file(tensors, folder / "transformer" / shard)
    index_path.write_text(json.dumps(index))


def _break_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer_2" / "tokenizer.json").write_text("{")


FAILURES: list[tuple[Callable[[Path], None], str]] = [
    (_remove_a_shard, "diffusion_pytorch_model-00003-of-00017.safetensors cannot be read: No such file"),
    (_truncate_a_shard, "diffusion_pytorch_model-00001-of-00002.safetensors is truncated"),
    (_name_a_wrong_class, "BertModel"),
    (_name_another_pipeline, "StableDiffusionPipeline, not FluxPipeline"),
    (_demand_a_terabyte, "GB are free"),
    (_change_a_shape, "transformer could not be loaded as FluxTransformer2DModel"),
    (_drop_a_tensor, "the first is x_embedder.weight"),
    (_break_the_tokenizer, "tokenizer_2 could not be loaded"),
]


@pytest.mark.parametrize(("damage", "sentence"), FAILURES, ids=[damage.__name__ for damage, _ in FAILURES])
def test_a_failed_load_leaves_the_front_up_with_a_sentence(
    damage: Callable[[Path], None], sentence: str, broken_checkpoint: Path, tmp_path: Path
) -> None:
    damage(broken_checkpoint)
    with ServerProcess(tmp_path / "data", "--model", str(broken_checkpoint)) as server:
        status = server.wait_until(lambda status: status["status"] == "failed")
        assert sentence in status["workers"][0]["error"]
        assert server.get("/livez").status_code == 200
        assert server.get("/readyz").status_code == 503
        refused = server.generate(size="256x256")
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert sentence in refused.json()["error"]["message"]
        assert server.stop() == 0


def test_a_repaired_model_loads_on_request_without_a_restart(
    tiny_checkpoint: Path, broken_checkpoint: Path, tmp_path: Path
) -> None:
    _truncate_a_shard(broken_checkpoint)
    with ServerProcess(tmp_path / "data", "--model", str(broken_checkpoint)) as server:
        server.wait_until(lambda status: status["status"] == "failed")
        shutil.copytree(tiny_checkpoint, broken_checkpoint, dirs_exist_ok=True)
        answer = server.post(f"/v1/models/{broken_checkpoint}/load")
        assert answer.status_code == 202
        server.wait_until_ready()
        assert server.generate(size="256x256", steps=1).status_code == 200


def test_no_such_model_says_what_would_be_one(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, "--model", "no/such-model") as server:
        status = server.wait_until(lambda status: status["status"] == "failed")
        assert "there is no model 'no/such-model'" in status["workers"][0]["error"]
        assert server.post("/v1/models/another/load").status_code == 404
