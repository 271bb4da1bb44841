"""The README's way to FLUX.1-dev, command by command as it stands there, on a small model of the same files.

All that differs is in the environment: where the hub is, a CPU, and a size that one draws in time.
"""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.documented_commands import shown_commands
from tests.flux_layout import REPOSITORY, write_flux_dev
from tests.hub_server import TOKEN, HubServer
from tests.server_process import ROOT, ServerProcess

QUICKLY = ("--size", "256x256", "--steps", "2", "--seed", "4")


@pytest.fixture(scope="module")
def commands() -> dict[str, list[str]]:
    """The arguments of each command of the README that names a FLUX, or follows one, by its action."""
    shown = [shlex.split(command) for command in shown_commands(ROOT / "README.md")]
    return {action: arguments for _program, action, *arguments in shown}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A user's: a hub that has the gated model, and a home with a token."""
    home = tmp_path_factory.mktemp("home")
    (home / "flux-token").write_text(f"{TOKEN}\n")
    with HubServer() as hub:
        hub.add(REPOSITORY, write_flux_dev(tmp_path_factory.mktemp("model")))
        hub.repositories[REPOSITORY].is_gated = True
        yield {
            "HOME": str(home),
            "HF_ENDPOINT": hub.url,
            "NO_PROXY": "127.0.0.1",
            "SAFELIGHT_DATA_DIR": str(home / "safelight-data"),
            "SAFELIGHT_DEVICE": "cpu",
            "SAFELIGHT_WARMUP_SIZES": "256x256",
        }


def _run(environment: dict[str, str], *arguments: str, exit_code: int = 0) -> str:
    expanded = [part.replace("~", environment["HOME"]) for part in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "safelight", *expanded],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode == exit_code, done.stdout
    assert TOKEN not in done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def pulled(commands: dict[str, list[str]], environment: dict[str, str]) -> Path:
    """What the README's first command brings."""
    refused = _run(environment, "pull", REPOSITORY, exit_code=1)
    assert "token" in refused, "gated"
    _run(environment, "pull", *commands["pull"])
    (snapshot,) = (Path(environment["SAFELIGHT_DATA_DIR"]) / "models" / REPOSITORY).glob("[0-9a-f]*")
    return snapshot


def test_the_pull_brings_what_is_needed_and_nothing_else(pulled: Path) -> None:
    names = {path.relative_to(pulled).as_posix() for path in pulled.rglob("*") if path.is_file()}
    assert {name for name in names if "/" not in name and "safelight-" not in name} == {"model_index.json"}
    assert {name.partition("/")[2] for name in names if name.startswith("transformer/")} == {
        "config.json",
        "diffusion_pytorch_model.safetensors.index.json",
        *(f"diffusion_pytorch_model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)),
    }
    assert {"tokenizer/merges.txt", "tokenizer_2/spiece.model", "tokenizer_2/tokenizer.json"} <= names
    assert {f"text_encoder_2/model-{number:05}-of-00002.safetensors" for number in (1, 2)} <= names


def test_the_doctor_says_that_it_fits(
    pulled: Path, commands: dict[str, list[str]], environment: dict[str, str]
) -> None:
    free = {"SAFELIGHT_PORT": "0"}
    said = _run(environment | free, "doctor", *commands["doctor"])
    assert f"model {REPOSITORY}: FLUX.1-dev, every file is whole" in said
    assert "in mode full and float32, and fits" in said
    refused = _run(environment | free | {"SAFELIGHT_MEMORY_LIMIT_MB": "1"}, "doctor", *commands["doctor"], exit_code=1)
    assert "0.0 GB are free" in refused
    assert "raise memory_limit_mb" in refused


@pytest.mark.parametrize("mode", ["offload", pytest.param("low", marks=pytest.mark.slow)])
def test_serve_and_generate_draw_in_every_mode(
    mode: str, pulled: Path, commands: dict[str, list[str]], environment: dict[str, str], tmp_path: Path
) -> None:
    """``full``, the fourth mode, is what all other tests have."""
    limit = {"SAFELIGHT_MEMORY": mode, "SAFELIGHT_MEMORY_LIMIT_MB": "400"}
    data_dir = Path(environment["SAFELIGHT_DATA_DIR"])
    with ServerProcess(data_dir, *commands["serve"], environment=environment | limit) as server:
        server.wait_until_ready()
        (worker,) = server.status()["workers"]
        assert (worker["fit"]["mode"], worker["fit"]["number_format"]) == (mode, "float32")
        assert 256 * 256 < worker["fit"]["max_pixels"] < 1024 * 1024
        (entry,) = server.get("/v1/models").json()["data"]
        assert (entry["id"], entry["family"], entry["default_size"]) == (REPOSITORY, "dev", "1024x1024")
        picture = tmp_path / "lighthouse.png"
        arguments = [part.replace("lighthouse.png", str(picture)) for part in commands["generate"]]
        _run(environment, "generate", *arguments, *QUICKLY, "--url", server.url)
        _PICTURES[mode] = picture.read_bytes()

        several = server.generate(size="256x256", num_inference_steps=1, n=4)
        assert (several.status_code, len(several.json()["data"])) == (200, 4)
        refused = server.generate(num_inference_steps=1)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_size")
        assert "1.05 megapixels" in refused.json()["error"]["message"]
        assert server.stop() == 0
        assert not [line for line in server.lines if TOKEN in line or "Traceback" in line]
    with Image.open(io.BytesIO(_PICTURES[mode])) as drawn:
        assert drawn.size == (256, 256)
        assert max(high - low for low, high in drawn.getextrema()) > 0  # type: ignore[misc]
        pixels = {name: Image.open(io.BytesIO(data)).tobytes() for name, data in _PICTURES.items()}
        assert set(pixels.values()) == {drawn.tobytes()}, "where weights come from changes no picture"


_PICTURES: dict[str, bytes] = {}
