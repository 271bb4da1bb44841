"""The README's commands, run as they stand there against a real server."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageChops, ImageStat

from scripts.docs_pictures import DEVELOPING, GALLERY, SEED
from tests.documented_commands import ADDRESS, blocks
from tests.server_process import ROOT, ServerProcess


def _blocks(language: str) -> list[str]:
    return [block.code for block in blocks(ROOT / "README.md", language)]


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
    command = _blocks("bash")[1].replace(ADDRESS, server.url)
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    assert _are_alike((tmp_path / "circle.png").read_bytes(), "circle.png")


def test_the_pictures_that_the_readme_shows_are_this_servers(server: ServerProcess) -> None:
    shown = re.findall(r"!\[([^\]]+)\]\(docs/images/([\w-]+\.png)\) \|", (ROOT / "README.md").read_text())
    assert {name.removesuffix(".png"): prompt for prompt, name in shown} == GALLERY
    for prompt, name in shown:
        with Image.open(ROOT / "docs" / "images" / name) as picture:
            written, _, how = str(picture.info["parameters"]).partition("\n")
        assert written == prompt
        assert f"Seed: {SEED}," in how
        answer = server.generate(prompt, seed=SEED)
        assert _are_alike(base64.b64decode(answer.json()["data"][0]["b64_json"]), name), name


def _are_alike(data: bytes, name: str) -> bool:
    """Matrix kernels differ between CPUs by a rounding, which the pixels may show by one."""
    with Image.open(io.BytesIO(data)) as picture, Image.open(ROOT / "docs" / "images" / name) as shown:
        difference = ImageChops.difference(picture.convert("RGB"), shown.convert("RGB"))
    return max(high for _, high in difference.getextrema()) <= 3  # type: ignore[misc]


def test_the_animation_is_small_and_ends_with_the_pictures() -> None:
    file = ROOT / "docs" / "images" / "developing.webp"
    assert file.stat().st_size < 1_500_000
    with Image.open(file) as film:
        assert getattr(film, "n_frames", 1) >= 10
        film.seek(getattr(film, "n_frames", 1) - 1)
        last = film.convert("RGB")
    for place, name in enumerate(DEVELOPING):
        with Image.open(ROOT / "docs" / "images" / f"{name}.png") as picture:
            width, height = picture.size
            part = last.crop((place * width, 0, (place + 1) * width, height))
            difference = ImageStat.Stat(ImageChops.difference(part, picture.convert("RGB")))
        assert max(difference.mean) < 8, name


def test_the_python_example_runs(server: ServerProcess) -> None:
    (example,) = _blocks("python")
    code = example.replace(ADDRESS, server.url) + "assert answer.data[0].b64_json\n"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


def test_the_status_stream_of_the_readme_answers(server: ServerProcess) -> None:
    run = subprocess.run(
        ["curl", "-sN", "--max-time", "1", f"{server.url}/v1/status/stream"], capture_output=True, text=True, timeout=10
    )
    assert run.stdout.startswith("event: status\ndata: {")
