"""``safelight pull`` on a real terminal: a bar for each file that comes, one for all, lines that stay, and Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server import HubServer, Trouble, folder_content
from tests.terminal.terminal_process import SAFELIGHT, TerminalProcess
from tests.unit.fake_checkpoint import TRANSFORMER_FILE, safetensors_bytes, write_checkpoint

MODEL = "acme/tiny"
VAE, TEXT = f"vae/{TRANSFORMER_FILE}", "text_encoder/model.safetensors"
FILE_BYTES = 2_000_000


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """Two of its files are large, and stop in their middle."""
    tensor = {"dtype": "F32", "shape": [FILE_BYTES // 4], "data_offsets": [0, FILE_BYTES]}
    with HubServer() as server:
        large = {name: safetensors_bytes({name: tensor}, bytes(FILE_BYTES)) for name in (VAE, TEXT)}
        server.add(MODEL, folder_content(write_checkpoint(tmp_path / "source")) | large)
        for name in (VAE, TEXT):
            server.troubles[name].append(Trouble(hold_after=FILE_BYTES // 2))
        yield server


def pull(hub: HubServer, models: Path, columns: int = 100) -> TerminalProcess:
    command = (*SAFELIGHT, "pull", MODEL, "--models-dir", str(models), "--endpoint", hub.url)
    return TerminalProcess(command, NO_PROXY="127.0.0.1", HF_TOKEN_PATH=os.devnull, columns=columns)


def test_files_under_way_have_bars_and_finished_ones_a_line(hub: HubServer, tmp_path: Path) -> None:
    with pull(hub, tmp_path / "models") as terminal:
        terminal.wait_for(rf"━━+╸?─+ +50% · {VAE} · 1\.0 MB of 2\.0 MB")
        terminal.wait_for(rf"━━+╸?─+ +50% · {TEXT} · 1\.0 MB of 2\.0 MB")
        terminal.wait_for(r"^ ━━+╸?─+ +50% · 2\.0 MB of 4\.0 MB")
        assert re.search(r"^1/15 model_index\.json \d+ bytes verified$", terminal.text, re.MULTILINE)
        hub.release.set()
        assert terminal.wait() == 0
        assert "15/15 " in terminal.text
        assert "━" not in terminal.text, "the bars go"
        assert f"serve it: safelight serve --model {MODEL}" in terminal.text


def test_a_narrow_terminal_gets_what_fits(hub: HubServer, tmp_path: Path) -> None:
    with pull(hub, tmp_path / "models", columns=30) as terminal:
        terminal.wait_for(r"50%")
        assert all(len(line) <= 30 for line in terminal.lines)


def test_ctrl_c_ends_it_at_once_while_the_hub_sends_nothing_and_the_next_one_goes_on(
    hub: HubServer, tmp_path: Path
) -> None:
    with pull(hub, tmp_path / "models") as terminal:
        terminal.wait_for(r"50% · 2\.0 MB of 4\.0 MB")
        start_s = time.monotonic()
        assert terminal.end(signal.SIGINT) == 130
        assert time.monotonic() - start_s < 5
        assert "Traceback" not in terminal.text and "━" not in terminal.text
    with pull(hub, tmp_path / "models") as terminal:
        assert terminal.wait() == 0
        assert "15 files, 2.0 MB there, 2.0 MB to go" in terminal.text
    assert hub.requests_of(VAE)[-1].headers["range"] == f"bytes={FILE_BYTES // 2}-"
