"""The command line: what is parsed, which exit code, what is printed."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NoReturn

import pytest

from safelight import __version__, cli
from safelight.cli import build_parser, config_of, main
from safelight.config import Config, settings
from safelight.errors import ConfigError, PortInUse, SafelightError


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SAFELIGHT_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_every_setting_is_an_option(command: str) -> None:
    for setting in settings():
        args = build_parser().parse_args([command, f"--{setting.name.replace('_', '-')}", "value"])
        assert getattr(args, setting.name) == "value"


def test_help_tells_meaning_variable_and_default_of_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for setting in settings():
        assert f"SAFELIGHT_{setting.name.upper()}" in text
        assert f"[default: {setting.default if setting.default != () else 'empty'}]" in text


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert (caught.value.code, capsys.readouterr().out) == (0, f"safelight {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["draw"],
        ["serve", "--prot", "1"],
        ["serve", "--por", "1"],
        ["serve", "extra"],
        ["serve", "--port"],
        ["generate"],
        ["generate", "a", "--seed", "seven"],
        ["generate", "a", "--steps", "1.5"],
        ["generate", "a", "--see", "1"],
        ["generate", "a", "--show", "ascii"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: safelight" in capsys.readouterr().err


def test_flags_beat_the_environment_which_beats_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "safelight.toml"
    file.write_text('port = 1\nhost = "file"\nmodel = "file"')
    monkeypatch.setenv("SAFELIGHT_PORT", "2")
    monkeypatch.setenv("SAFELIGHT_HOST", "environment")
    config = config_of(build_parser().parse_args(["serve", "--port", "3", "--config", str(file)]))
    assert (config.port, config.host, config.model) == (3, "environment", "file")


def test_the_config_file_may_be_named_by_the_environment_and_a_flag_beats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, port in (("one", 1), ("two", 2)):
        (tmp_path / name).write_text(f"port = {port}")
    monkeypatch.setenv("SAFELIGHT_CONFIG", str(tmp_path / "one"))
    assert config_of(build_parser().parse_args(["serve"])).port == 1
    assert config_of(build_parser().parse_args(["serve", "--config", str(tmp_path / "two")])).port == 2
    monkeypatch.setenv("SAFELIGHT_CONFIG", "")
    assert config_of(build_parser().parse_args(["serve"])) == Config()


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_a_wrong_setting_is_exit_code_2_and_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--queue-limit", "0"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "safelight: --queue-limit='0' is not a whole number from 1 to 100000\n"
    assert captured.out == ""


def test_a_wrong_variable_is_exit_code_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SAFELIGHT_PORTS", "80")
    assert main(["serve"]) == 2
    assert capsys.readouterr().err == "safelight: SAFELIGHT_PORTS is not a setting of Safelight\n"


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (ConfigError("wrong setting"), 2, "safelight: wrong setting\n"),
        (PortInUse("in use"), 1, "safelight: in use\n"),
        (SafelightError("anything"), 1, "safelight: anything\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_error_becomes_its_sentence_and_an_exit_code(
    error: BaseException,
    code: int,
    printed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(args: argparse.Namespace) -> NoReturn:
        raise error

    monkeypatch.setattr(cli, "_serve", fail)
    assert main(["serve"]) == code
    assert capsys.readouterr().err == printed


def test_the_options_of_generate() -> None:
    args = build_parser().parse_args(["generate", "a red circle"])
    assert (args.output, args.url, args.local, args.model) == (Path("out.png"), None, False, None)
    assert (args.prompt, args.seed, args.steps, args.size, args.show) == ("a red circle", None, None, None, "auto")
    words = ["generate", "a", "-o", "b.webp", "--url", "http://x", "--local", "--seed", "7", "--steps", "3"]
    args = build_parser().parse_args([*words, "--size", "64x64", "--model", "m", "--device", "cpu"])
    assert (args.output, args.url, args.local, args.model) == (Path("b.webp"), "http://x", True, "m")
    assert (args.seed, args.steps, args.size, args.device) == (7, 3, "64x64", "cpu")


@pytest.mark.parametrize("output", ["picture", "picture.gif", "picture.png.txt"])
def test_generate_refuses_a_file_whose_format_it_cannot_write(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a", "-o", output]) == 1
    assert capsys.readouterr().err == f"safelight: --output {output} must end in .png, .jpg or .webp\n"


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://[", "nonsense"])
def test_generate_says_when_no_server_answers_at_the_url(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a", "--url", url]) == 1
    assert capsys.readouterr().err == f"safelight: no Safelight server answers at {url}\n"
