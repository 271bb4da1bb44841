"""``safelight generate`` on a terminal: the steps, and the picture itself as each kind of terminal takes it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from safelight.commands.terminal_picture import Frame, blocks, frame_of, sixel
from safelight.commands.terminal_support import named_protocol
from tests.chaos.chaos_server import ChaosServer
from tests.terminal.picture_reading import (
    block_picture,
    difference,
    iterm_pictures,
    kitty_pictures,
    sixel_pictures,
)
from tests.terminal.terminal_process import ROOT, SAFELIGHT, TerminalProcess

SIXEL_ANSWER = "\x1b[6;20;10t\x1b[?62;4;22c"
PLAIN_ANSWER = "\x1b[?1;2c"
KITTY: dict[str, Any] = {"TERM": "xterm-kitty"}
ITERM: dict[str, Any] = {"TERM_PROGRAM": "iTerm.app"}
BLOCKS: dict[str, Any] = {"COLORTERM": "truecolor"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosServer]:
    """Slow enough for every preview to be seen."""
    with ChaosServer(tmp_path_factory.mktemp("data"), step_s=0.1) as server:
        server.wait_until_ready()
        yield server
        assert server.stop() == 0


class Generate(TerminalProcess):
    """``safelight generate`` on a terminal; ``answer`` is what that says when it is asked what it can do."""

    def __init__(self, server: ChaosServer, output: Path, *options: str, answer: str = "", **arguments: Any) -> None:
        asked = ("a red circle", "--url", server.url, "--seed", "3", "--steps", "8", "-o", str(output), *options)
        self.output = output
        super().__init__((*SAFELIGHT, "generate", *asked), **arguments)
        if answer:
            self.poll(lambda: "\x1b[c" in self.written)
            self.type(answer)

    @property
    def file(self) -> Image.Image:
        return Image.open(self.output)

    def ends_well(self) -> None:
        """The last line is the one that scripts read, nothing of the bar is left, and the cursor is below."""
        assert self.wait() == 0, self.text
        assert f"{self.output} (seed 3)" in self.text.replace("\n", "")
        assert not re.search("[━╸─]", self.text)
        assert self.is_cursor_visible and self.screen.cursor.x == 0


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_kitty_shows_the_pixels_of_the_file_and_what_they_developed_from(
    server: ChaosServer, tmp_path: Path, suffix: str
) -> None:
    with Generate(server, tmp_path / f"out.{suffix}", **KITTY, columns=160, rows=30) as run:
        run.wait_for(r"[━╸]+─+ +\d/8 · developing")
        run.ends_well()
        *previews, (keys, last) = kitty_pictures(run.written)
        assert len(previews) == 3
        assert last.convert("RGB").tobytes() == run.file.convert("RGB").tobytes()
        assert {shown["i"] for shown, _ in previews} == {keys["i"]}
        assert (keys["C"], keys["q"], keys["c"], keys["r"]) == ("1", "2", "40", "20")


def test_iterm_shows_the_file_itself(server: ChaosServer, tmp_path: Path) -> None:
    with Generate(server, tmp_path / "out.jpg", **ITERM, columns=160) as run:
        run.ends_well()
        *previews, (arguments, last) = iterm_pictures(run.written)
        assert len(previews) == 3
        assert (last.format, last.tobytes()) == ("JPEG", run.file.tobytes())
        assert int(arguments["size"]) == (tmp_path / "out.jpg").stat().st_size
        assert (arguments["inline"], arguments["width"], arguments["height"]) == ("1", "40", "20")


def test_a_terminal_that_says_so_gets_sixels_of_its_own_cell_size(server: ChaosServer, tmp_path: Path) -> None:
    with Generate(server, tmp_path / "out.png", answer=SIXEL_ANSWER, columns=160) as run:
        run.ends_well()
        shown = sixel_pictures(run.written)
        assert len(shown) == 4
        assert shown[-1].size == (40 * 10, 20 * 20)
        assert difference(shown[-1], run.file) < 6


def test_a_terminal_with_24_bit_colours_gets_half_blocks(server: ChaosServer, tmp_path: Path) -> None:
    with Generate(server, tmp_path / "out.png", **BLOCKS, answer=PLAIN_ANSWER, columns=160) as run:
        run.ends_well()
        shown = block_picture(run.screen)
        assert shown.size == (40, 40)
        assert difference(shown, run.file) < 8
        assert "\x1bP" not in run.written and "\x1b_" not in run.written


@pytest.mark.parametrize("columns", [40, 24])
def test_a_picture_fits_a_narrow_terminal(server: ChaosServer, tmp_path: Path, columns: int) -> None:
    with Generate(server, tmp_path / "out.png", "--show", "blocks", columns=columns, rows=40) as run:
        run.ends_well()
        width, height = block_picture(run.screen).size
        assert width == height == min(columns - 1, 40) or abs(width - height) <= 1


def test_the_picture_stays_where_it_is_at_the_bottom_of_a_full_screen(server: ChaosServer, tmp_path: Path) -> None:
    filled = ["sh", "-c", 'seq 40; exec "$@"', "sh", *SAFELIGHT]
    asked = ["generate", "a", "--url", server.url, "--seed", "3", "--steps", "8", "-o", str(tmp_path / "out.png")]
    with TerminalProcess([*filled, *asked, "--show", "blocks"], columns=160) as run:
        assert run.wait() == 0
        assert difference(block_picture(run.screen), Image.open(tmp_path / "out.png")) < 8
        assert len([line for line in run.lines if "▀" in line]) == 20
        assert run.history[-1].isdigit()
        assert not [line for line in run.history if "▀" in line]


def test_a_terminal_that_never_answers_gets_no_picture(server: ChaosServer, tmp_path: Path) -> None:
    with Generate(server, tmp_path / "out.png") as run:
        run.ends_well()
        assert not sixel_pictures(run.written) and "▀" not in run.text


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        (["--show", "never"], KITTY),
        ([], {"TERM": "dumb", "KITTY_WINDOW_ID": "1"}),
        (["--show", "auto"], BLOCKS | {"NO_COLOR": "1"}),
    ],
)
def test_where_pictures_are_not_wanted_there_are_none(
    server: ChaosServer, tmp_path: Path, options: list[str], environment: dict[str, str]
) -> None:
    with Generate(server, tmp_path / "out.png", *options, **environment) as run:
        run.ends_well()
        assert not re.search(r"▀|\x1b[_P\]]", run.written)


def test_a_file_or_a_pipe_gets_no_escape_sequence(server: ChaosServer, tmp_path: Path) -> None:
    asked = ["generate", "a", "--url", server.url, "--seed", "3", "--steps", "2", "-o", str(tmp_path / "out.png")]
    run = subprocess.run([*SAFELIGHT, *asked, "--show", "kitty"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (run.stdout, run.stderr) == (f"{tmp_path / 'out.png'} (seed 3)\n", "")


def test_ctrl_c_cancels_the_job_and_leaves_a_clean_line(server: ChaosServer, tmp_path: Path) -> None:
    with Generate(server, tmp_path / "out.png", "--steps", "100", **KITTY) as run:
        run.wait_for(r"[2-9]/100 · developing")
        run.type("\x03")
        assert run.wait() == 130
        assert "developing" not in run.text and "Traceback" not in run.text
        assert run.is_cursor_visible
    (job, *_) = server.get("/v1/predictions").json()["results"]
    assert server.wait_for(job["id"])["status"] == "canceled"


def test_a_server_that_dies_is_one_sentence(tmp_path: Path) -> None:
    with ChaosServer(tmp_path / "data", step_s=0.1) as server:
        server.wait_until_ready()
        with Generate(server, tmp_path / "out.png", "--steps", "100", **KITTY) as run:
            run.wait_for(r"[2-9]/100 · developing")
            server.process.send_signal(signal.SIGKILL)
            assert run.wait() == 1
            assert f"safelight: {server.url} does not answer" in run.text and "Traceback" not in run.text


def test_while_the_server_loads_its_bar_is_shown(tmp_path: Path) -> None:
    with (
        ChaosServer(tmp_path / "data", STUB_LOAD_S="2") as server,
        Generate(server, tmp_path / "out.png", **KITTY) as run,
    ):
        run.wait_for(r"^ cpu weights \w+ \d/7 · [━╸─]+")
        run.ends_well()


def test_an_engine_of_its_own_shows_its_load_and_the_picture(tmp_path: Path) -> None:
    output = tmp_path / "out.png"
    command = (*SAFELIGHT, "generate", "a red circle", "--local", "--seed", "3", "-o", str(output))
    with TerminalProcess(command, columns=160, **KITTY) as run:
        run.wait_for(r"^ cpu (import|weights)", 60)
        assert run.wait(120) == 0
        *previews, (_, last) = kitty_pictures(run.written)
        assert len(previews) == 3
        assert last.tobytes() == Image.open(output).tobytes()


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        (KITTY, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        (ITERM, "iterm"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, None),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, None),
        ({"TMUX": "/tmp/tmux", "LC_TERMINAL": "iTerm2"}, None),
    ],
)
def test_what_the_environment_says_of_pictures(environment: dict[str, str], protocol: str | None) -> None:
    assert named_protocol(environment) == protocol


def test_a_frame_has_the_pictures_shape_and_fits() -> None:
    wide = frame_of((1024, 512), (10, 20), os.terminal_size((80, 24)))
    assert wide == Frame(79, 20)


def test_every_height_of_a_picture_survives_sixels_and_blocks() -> None:
    image = Image.radial_gradient("L").convert("RGB").resize((33, 20))
    for height in range(1, 20):
        (read,) = sixel_pictures(sixel(image.resize((33, height))))
        assert read.size == (33, height)
        assert difference(read, image.resize((33, height))) < 4
    assert blocks(image).count("\r\n") == 9
