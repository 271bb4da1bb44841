"""The command line as a user types it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.server_process import ROOT, ServerProcess


def _safelight(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "safelight", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def _picture(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


@pytest.mark.parametrize(("suffix", "name"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")])
def test_generate_asks_a_running_server(server: ServerProcess, tmp_path: Path, suffix: str, name: str) -> None:
    file = tmp_path / f"out.{suffix}"
    run = _safelight(
        "generate", "a red circle", "-o", str(file), "--url", server.url, "--seed", "3", "--steps", "2",
        "--size", "128x128",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{file} (seed 3)\n"
    image = _picture(file)
    assert (image.format, image.size) == (name, (128, 128))


def test_generate_starts_an_engine_of_its_own_and_draws_the_same_picture(server: ServerProcess, tmp_path: Path) -> None:
    asked = ["a red circle on a blue background", "--seed", "3", "--steps", "2"]
    assert _safelight("generate", *asked, "-o", str(tmp_path / "served.png"), "--url", server.url).returncode == 0
    alone = _safelight("generate", *asked, "-o", str(tmp_path / "alone.png"), "--local")
    assert alone.returncode == 0, alone.stderr
    assert _picture(tmp_path / "alone.png").tobytes() == _picture(tmp_path / "served.png").tobytes()


def test_generate_names_unknown_words(server: ServerProcess, tmp_path: Path) -> None:
    run = _safelight("generate", "a red zeppelin", "-o", str(tmp_path / "o.png"), "--url", server.url, "--steps", "1")
    assert "warning: the model does not know: zeppelin" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["a", "-o", "out.gif"], "--output out.gif must end in .png, .jpg or .webp"),
        (["a", "--url", "http://127.0.0.1:9"], "no Safelight server answers at http://127.0.0.1:9"),
        (["a", "--local", "--model", "no/such-model"], "there is no model 'no/such-model'"),
    ],
)
def test_generate_fails_with_one_sentence(arguments: list[str], sentence: str) -> None:
    run = _safelight("generate", *arguments)
    assert run.returncode == 1
    assert sentence in run.stderr and run.stderr.count("\n") == 1


def test_doctor_finds_nothing_wrong_here(tmp_path: Path) -> None:
    run = _safelight("doctor", "--port", "0", "--device", "cpu", "--workers", "200", "--data-dir", str(tmp_path))
    assert run.returncode == 0, run.stdout
    assert "200 workers need about 212." in run.stdout
    assert "every file is whole" in run.stdout and ", and fits" in run.stdout
    assert "FAIL" not in run.stdout


def test_doctor_names_every_fault_and_exits_1(server: ServerProcess, tmp_path: Path) -> None:
    port = server.url.rsplit(":", 1)[1]
    (tmp_path / "file").write_text("")
    run = _safelight(
        "doctor", "--port", port, "--model", "no/such", "--device", "cpu", "--data-dir", str(tmp_path / "file")
    )
    assert run.returncode == 1
    faults = [line for line in run.stdout.splitlines() if line.startswith("FAIL")]
    assert len(faults) >= 3
    assert f"port {port} on 127.0.0.1 is in use" in run.stdout
    assert "there is no model 'no/such'" in run.stdout


def test_help_is_instant_and_imports_no_library() -> None:
    code = (
        "import sys; from safelight.cli import build_parser; build_parser().format_help(); "
        "raise SystemExit(any(name in sys.modules for name in ('torch', 'fastapi', 'rich', 'httpx2')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0
