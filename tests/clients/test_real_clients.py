"""The clients that people have, unmodified, each in the versions they have: only address and key are ours.

Each runs its cases in a process and an environment of its own, made once under ``.clients/``, and prints what it saw.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from safelight.config import STUB_MODEL
from tests.environments import node_with, python_with
from tests.server_process import ServerProcess

HERE = Path(__file__).parent
KEY = "a-key-for-clients"
TIMEOUT_S = 120

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """With keys, a short queue and a model that takes its time."""
    environment = {"SAFELIGHT_API_KEYS": f"tester={KEY},other=another-key-of-ours", "STUB_STEP_S": "0.02"}
    options = ("--model", STUB_MODEL, "--queue-limit", "2")
    with ServerProcess(tmp_path_factory.mktemp("data"), *options, environment=environment) as server:
        server.wait_for_line("worker 0 ready")
        yield server
        assert server.stop() == 0
        assert not [line for line in server.lines if "Traceback" in line or KEY in line]


def _run(*command: str | Path) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SAFELIGHT_"))}
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=environment | {"PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"


@pytest.mark.parametrize(("package", "major"), [("openai==2.54.0", "2"), ("openai==3.54.0", "3")])
def test_openai_python(package: str, major: str, server: ServerProcess) -> None:
    found = _run(*python_with("openai", package), HERE / "openai_cases.py", server.url, KEY)
    assert found.pop("version").startswith(f"{major}.")
    assert found == {
        "success": [[True, True], [5, 6], 512, True],
        "models": [[STUB_MODEL], STUB_MODEL],
        "edit": [True, True],
        "stream": [[PARTIAL, True, 0], [PARTIAL, True, 1], [COMPLETED, True, None]],
        "error": [400, "invalid_size", "size", True],
        "wrong_key": "invalid_api_key",
        "broken_stream": "out_of_memory",
        "timeout": True,
        "retry": [True] * 4,
    }


def test_openai_javascript(server: ServerProcess) -> None:
    folder = node_with("node", "node@22", "openai@7")
    shutil.copy(HERE / "openai_cases.mjs", folder)
    found = _run(folder / "node_modules/.bin/node", folder / "openai_cases.mjs", server.url, KEY)
    assert found == {
        "success": [[True, True], [5, 6]],
        "models": [STUB_MODEL],
        "edit": True,
        "stream": [[PARTIAL, True], [PARTIAL, True], [COMPLETED, True]],
        "error": [True, "invalid_size", "size"],
        "wrong_key": True,
        "broken_stream": [True, "out_of_memory"],
        "timeout": "APIConnectionTimeoutError",
        "retry": [True] * 4,
    }


def test_replicate_python(server: ServerProcess) -> None:
    found = _run(*python_with("replicate", "replicate==1.0.7"), HERE / "replicate_cases.py", server.url, KEY)
    assert found == {
        "run": ["PNG", "PNG"],
        "run_longer_than_the_wait": "PNG",
        "progress": ["succeeded", True, True, True],
        "cancel": "canceled",
        "listed": "canceled",
        "stream": ["logs"] * 4 + ["output", "done"],
        "failed": ["failed", True],
        "error": [400, True],
        "secret": "whsec_",
    }


def test_webuiapi_and_sd_parsers(server: ServerProcess) -> None:
    url = urlsplit(server.url)
    python = python_with("webui", "webuiapi==0.9.17", "sd-parsers==0.6")
    found = _run(*python, HERE / "webui_cases.py", str(url.hostname), str(url.port), KEY)
    size, seed, width, (generator, prompts, told_seed, told_steps) = found.pop("txt2img")
    assert (size, seed, width) == ([256, 256], 1003, 256)
    assert (generator, prompts, str(told_seed), str(told_steps)) == ("AUTOMATIC1111", ["a red circle"], "1003", "20")
    assert found == {
        "interrupt": [499],
        "error": 400,
        "batch": [[512, 512]] * 4,
        "img2img": [[0, 0], [0, 0], [255, 255]],
        "lists": [STUB_MODEL, [STUB_MODEL], ["Euler"], [], {"txt2img": [], "img2img": []}, 0.0],
    }


def test_hugging_face_python(server: ServerProcess) -> None:
    """Its major version with the old HTTP library; the new one is used in ``tests/integration``."""
    found = _run(*python_with("hf", "huggingface_hub==1.33.0", "pillow"), HERE / "hf_cases.py", server.url, KEY)
    assert found == {
        "success": [[256, 192], "PNG"],
        "image_to_image": [[128, 128], [64, 64]],
        "error": [400, True],
        "wrong_key": 401,
        "timeout": True,
    }
