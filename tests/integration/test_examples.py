"""Every example of ``docs/http-api.md`` runs as it stands, but for the address."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.environments import python_with
from tests.server_process import ROOT, ServerProcess

PAGE = (ROOT / "docs" / "http-api.md").read_text()
EXAMPLES = re.findall(r"```(python|sh)\n(.*?)```", PAGE, re.DOTALL)


def test_every_api_has_an_example() -> None:
    text = "".join(code for _, code in EXAMPLES)
    for api in ("images.generate(", "/v1/images/edits", "replicate", "InferenceClient", "/sdapi/", "flux-dev", "/v2/"):
        assert api in text, api


@pytest.mark.parametrize(("language", "code"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_runs(language: str, code: str, server: ServerProcess, tmp_path: Path) -> None:
    code = code.replace("http://127.0.0.1:8000", server.url)
    if language == "sh":
        command = [str(shutil.which("bash")), "-euo", "pipefail", "-c", code]
    elif "replicate" in code:
        command = [*python_with("replicate", "replicate==1.0.7"), "-c", code]
    else:
        command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or list(tmp_path.iterdir()) or "InferenceClient" in code
    for picture in tmp_path.glob("*.png"):
        with Image.open(picture) as image:
            assert image.size == (256, 256)
