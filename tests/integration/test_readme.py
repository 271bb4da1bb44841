"""The README's commands, run as they stand there against a real server."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.server_process import ROOT, ServerProcess

_ADDRESS = "http://127.0.0.1:8000"


def _blocks(language: str) -> list[str]:
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(r"^  ", "", block, flags=re.MULTILINE) if block.startswith("  ") else block for block in found]


def test_the_first_screen_is_run_curl_test() -> None:
    run, curl, test = _blocks("bash")
    assert (run, test) == ("make run\n", "make test\n")
    assert curl.startswith("curl ")
    assert "\n".join((ROOT / "README.md").read_text().splitlines()[:30]).count("```") == 6


def test_make_run_and_make_test_do_what_they_say() -> None:
    for target, command in (("run", ".venv/bin/python run.py"), ("test", ".venv/bin/python -m pytest")):
        plan = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=30)
        assert command in plan.stdout


def test_the_curl_gives_the_picture_that_the_readme_shows(server: ServerProcess, tmp_path: Path) -> None:
    command = _blocks("bash")[1].replace(_ADDRESS, server.url)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    files = (tmp_path / "circle.png", ROOT / "docs" / "images" / "circle.png")
    picture, shown = (Image.open(io.BytesIO(file.read_bytes())) for file in files)
    # Matrix kernels differ between CPUs by a rounding, which the pixels may show by one.
    difference = max(high for _, high in _extrema(picture, shown))
    assert difference <= 3


def _extrema(first: Image.Image, second: Image.Image) -> list[tuple[int, int]]:
    from PIL import ImageChops

    found: list[tuple[int, int]] = list(ImageChops.difference(first.convert("RGB"), second.convert("RGB")).getextrema())  # type: ignore[arg-type]
    return found


def test_the_python_example_runs(server: ServerProcess) -> None:
    (example,) = _blocks("python")
    code = example.replace(_ADDRESS, server.url) + "assert answer.data[0].b64_json\n"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


def test_the_status_stream_of_the_readme_answers(server: ServerProcess) -> None:
    run = subprocess.run(
        ["curl", "-sN", "--max-time", "1", f"{server.url}/v1/status/stream"], capture_output=True, text=True, timeout=10
    )
    assert run.stdout.startswith("event: status\ndata: {")
