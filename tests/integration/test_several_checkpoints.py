"""Real models that take turns on one device: the embedded one, a tiny random one, and one that breaks as it loads."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.checkpoints import edit_json
from tests.server_process import ServerProcess

MODELS = """
model_wait_s = 600

[[models]]
model = "safelight/shapes"

[[models]]
name = "tiny"
model = "{tiny}"
warmup_sizes = ["256x256"]

[[models]]
name = "broken"
model = "{broken}"
"""


@pytest.fixture
def several(tmp_path: Path, tiny_checkpoint: Path, broken_checkpoint: Path) -> Iterator[ServerProcess]:
    """Whole to who reads their headers, all three."""
    edit_json(broken_checkpoint / "transformer" / "config.json", num_attention_heads=4)
    file = tmp_path / "safelight.toml"
    file.write_text(MODELS.format(tiny=tiny_checkpoint, broken=broken_checkpoint))
    with ServerProcess(tmp_path / "data", "--config", str(file)) as server:
        server.wait_until_ready()
        yield server
        assert server.stop() == 0


def _submit(server: ServerProcess, model: str, **members: object) -> str:
    answer = server.post("/v1/predictions", {"model": model, "input": {"prompt": "a red circle", **members}})
    assert answer.status_code == 201, answer.text
    name: str = answer.json()["id"]
    return name


def _picture(server: ServerProcess, name: str) -> Image.Image:
    server.wait_until(lambda _: server.get(f"/v1/predictions/{name}").json()["status"] == "succeeded")
    return Image.open(io.BytesIO(server.get(f"/v1/predictions/{name}/output/0").content))


@pytest.mark.slow
def test_jobs_of_two_models_are_drawn_by_each_and_a_third_that_breaks_leaves_them_serving(
    several: ServerProcess, tiny_checkpoint: Path
) -> None:
    ours = [_submit(several, "safelight/shapes", seed=seed) for seed in (1, 2)]
    theirs = [_submit(several, "tiny", seed=seed, width=256, height=256, num_inference_steps=2) for seed in (1, 2)]
    ours.append(_submit(several, "safelight/shapes", seed=1))
    first, second, again = (_picture(several, name) for name in ours)
    assert first.tobytes() == again.tobytes() != second.tobytes()
    for names, model in ((ours, "safelight/shapes"), (theirs, str(tiny_checkpoint))):
        for name in names:
            assert f"Model: {model}" in _picture(several, name).info["parameters"]
    assert _picture(several, theirs[0]).size == (256, 256)

    worker = several.status()["workers"][0]
    assert (worker["switch"]["state"], worker["switch"]["from"], worker["model"]) == (
        "done",
        "safelight/shapes",
        "tiny",
    )
    assert "GB" in worker["switch"]["reason"], "the memory has decided"

    answer = several.post("/v1/images/generations", {"prompt": "a", "model": "broken", "size": "256x256"})
    assert answer.status_code == 503
    assert "transformer could not be loaded as FluxTransformer2DModel" in answer.json()["detail"]
    models = {entry["id"]: entry for entry in several.status()["models"]}
    assert (models["broken"]["state"], models["tiny"]["state"]) == ("failed", "ready")
    assert models["broken"]["error"] == answer.json()["detail"]
    answer = several.post("/v1/images/generations", {"prompt": "a", "model": "tiny", "size": "256x256"})
    assert Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))).size == (256, 256)
