"""LoRA adapters through the real server: what comes with the model, and files that are meant to do harm."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from safelight.lora.layers import Size
from tests.lora_files import embedded_layers, random_matrices, write_diffusers, write_kohya
from tests.server_process import ROOT, ServerProcess

PROMPT = "a large red circle on a blue background"
PASTEL = [{"name": "pastel"}]


def _drawn(server: ServerProcess, **members: Any) -> bytes:
    answer = server.generate(PROMPT, seed=1, **{"steps": 6, **members})
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def _lightness(picture: bytes) -> float:
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), float) / 255
    return float((pixels.max(-1) + pixels.min(-1)).mean() / 2)


@pytest.fixture
def loras_dir(server: ServerProcess) -> Path:
    return server.data_dir / "loras"


def test_the_adapter_that_comes_with_the_model_makes_paler_pictures(server: ServerProcess, tmp_path: Path) -> None:
    plain, pastel = _drawn(server), _drawn(server, loras=PASTEL)
    assert _lightness(pastel) > _lightness(plain) + 0.1
    assert _drawn(server) == plain
    text = Image.open(io.BytesIO(pastel)).info["parameters"]
    assert f"{PROMPT} <lora:pastel:1>\n" in text
    file = tmp_path / "out.png"
    command = ["generate", PROMPT, "--lora", "pastel", "--seed", "1", "--steps", "6", "-o", str(file)]
    subprocess.run([sys.executable, "-m", "safelight", *command, "--url", server.url], cwd=ROOT, check=True, timeout=60)
    assert file.read_bytes() == pastel


def test_text_encoder_layers_are_said_to_have_no_effect(server: ServerProcess, loras_dir: Path) -> None:
    matrices = random_matrices({"proj_out": embedded_layers()["proj_out"], "fc1": Size(8, 8)}, 4, seed=1)
    write_kohya(loras_dir / "both.safetensors", matrices, text_encoder={"fc1"})
    answer = server.generate(PROMPT, steps=1, loras=[{"name": "both"}]).json()
    assert "the LoRA adapter 'both' also changes 1 layers of the text encoders, which has no effect here" in str(
        answer["warnings"]
    )


@pytest.mark.parametrize(
    ("value", "code", "sentence"),
    [
        (float("nan"), "lora_invalid", "the LoRA adapter 'bad' has NaN or infinity in"),
        (3e38, "bad_output", "NaN or infinity"),
    ],
    ids=["NaN", "more than a number can be"],
)
def test_an_adapter_of_bad_values_ends_its_job_and_neither_a_worker_nor_other_pictures(
    server: ServerProcess, loras_dir: Path, value: float, code: str, sentence: str
) -> None:
    canary, workers = _drawn(server), server.worker_pids()
    matrices = random_matrices(embedded_layers(), 4, seed=1)
    for _, up in matrices.values():
        up.fill_(value)
    write_diffusers(loras_dir / "bad.safetensors", matrices)
    answer = server.generate(PROMPT, steps=2, loras=[{"name": "bad"}])
    assert answer.json()["error"]["code"] == code, answer.text
    assert sentence in answer.json()["error"]["message"]
    assert _drawn(server) == canary
    assert server.worker_pids() == workers
