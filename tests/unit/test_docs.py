"""Docs and code may not drift: settings, routes, options, modules and paths."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from fastapi.routing import APIRoute

from safelight import __version__
from safelight.cli import build_parser
from safelight.config import Config, load_config, settings
from safelight.errors import ConfigError, PortInUse, PullError, SafelightError, StoreError
from safelight.model_card import ModelCard
from safelight.server import bfl, edits, images, prediction_request
from safelight.server.app import APIS
from safelight.server.metrics import GAUGES, Metrics
from scripts.configuration_reference import written
from tests.documented_commands import blocks, shown_commands
from tests.unit.running_front import make_front

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")) if path.is_file()
)
_LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
_CODE_PATH = re.compile(
    r"`((?:src|docs|tests|benchmarks|training|scripts|deploy)/[\w./-]+|[\w/]+\.(?:py|md|json|toml))`"
)


def _page(name: str) -> str:
    return (ROOT / name).read_text()


def test_the_configuration_reference_is_what_the_settings_make() -> None:
    page = _page("docs/configuration.md")
    assert page.count("<!-- made from the settings: ") == 2
    assert written(page) == page, "run `make reference`"


def test_every_setting_is_documented_with_its_default_and_meaning() -> None:
    page = _page("docs/configuration.md")
    for setting in settings():
        row = next((line for line in page.splitlines() if line.startswith(f"| `{setting.name}` ")), "")
        _, _, variable, default, meaning, _ = (cell.strip() for cell in row.split("|"))
        if default != "empty":
            assert setting.metadata["parse"](default.strip("`")) == setting.default, setting.name
        else:
            assert setting.default in ((), None, ""), setting.name
        assert variable == f"`SAFELIGHT_{setting.name.upper()}`"
        assert meaning == setting.metadata["help"], setting.name
    rows = re.findall(r"^\| `(\w+)` ", page, re.MULTILINE)
    assert rows == [setting.name for setting in settings()]


def test_the_file_with_every_setting_changes_nothing(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", _page("docs/configuration.md"), re.DOTALL)
    file = tmp_path / "safelight.toml"
    file.write_text(text)
    assert load_config({}, {}, file) == Config()
    assert re.findall(r"^(?:# )?(\w+) =", text, re.MULTILINE) == [setting.name for setting in settings()]


def test_every_error_has_a_remedy() -> None:
    page = _page("docs/troubleshoot.md")
    kinds = {kind.code: kind for kind in _errors(SafelightError)}
    rows = {cells[0]: cells for cells in re.findall(r"^\| `(\w+)` \|(.*)\| (\S.*\S) \|$", page, re.MULTILINE)}
    assert set(rows) == set(kinds) - {"safelight_error", "protocol_error", "invalid_transition"}
    for code, kind in kinds.items():
        if code in rows and not issubclass(kind, ConfigError | PortInUse | StoreError | PullError):
            assert rows[code][1].split("|")[0].strip() == str(kind.status), code
        assert f"`{code}`" in page, code


def _errors(kind: type[SafelightError]) -> Iterator[type[SafelightError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _errors(child)


def test_commands_that_are_only_shown_exist() -> None:
    shown = [command for page in PAGES for command in shown_commands(page)]
    assert len(shown) >= 8
    for command in shown:
        program, *arguments = shlex.split(command)
        if program == "safelight":
            args = build_parser().parse_args(arguments)
            flags = {setting.name: getattr(args, setting.name, None) for setting in settings()}
            load_config(flags, {})
        for name in arguments:
            assert not name.startswith("deploy/") or (ROOT / name).is_file(), command


def test_the_model_card_that_is_shown_is_one() -> None:
    (block,) = blocks(ROOT / "docs" / "serve-your-checkpoint.md", "json")
    members = json.loads(block.code)
    assert set(members) <= set(ModelCard.__struct_fields__)
    assert msgspec.json.decode(block.code, type=ModelCard).id == members["id"]


def test_every_route_is_documented(tmp_path: Path) -> None:
    page = _page("docs/http-api.md")
    front = make_front(tmp_path)
    routes = {
        route.path.replace(":path", "")
        for api in APIS
        for route in api.routes(front).routes
        if isinstance(route, APIRoute)
    }
    assert len(routes) >= 40
    for path in routes:
        assert f"{path}`" in page, path


def test_every_metric_is_documented() -> None:
    page = _page("docs/metrics.md")
    metrics = Metrics(lambda: dict.fromkeys(GAUGES, 0.0))
    families = [family for family in metrics.registry.collect()]
    assert len(families) >= 18
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        row = next((line for line in page.splitlines() if line.startswith(f"| `{name}` ")), "")
        assert family.documentation in row, name


def test_the_figures_of_the_chaos_campaign_are_the_recorded_ones() -> None:
    page = _page("docs/reliability.md")
    found = json.loads(_page("benchmarks/results/chaos.json"))
    assert (found["accepted"], found["worker_kills"], found["server_kills"]) == (1000, 50, 50)
    assert not any(found[name] for name in ("lost", "failed", "wrong_pictures", "duplicated", "left_over"))
    assert f"| {found['attempts']['2']}, {found['attempts']['3']} |" in page
    for name in ("server_recovery_s", "worker_recovery_s"):
        assert f"median {found[name]['median']:.2f} s, at most {found[name]['max']:.2f} s" in page


def test_every_member_of_a_request_is_documented() -> None:
    page = _page("docs/http-api.md")
    kinds = (
        images.ImagesRequest,
        edits.EditRequest,
        prediction_request.PredictionRequest,
        prediction_request.PredictionInput,
        bfl.FluxRequest,
    )
    for name in [name for kind in kinds for name in kind.model_fields]:
        assert f"`{name}`" in page, name


def test_every_option_is_documented() -> None:
    page = _page("docs/configuration.md") + _page("docs/cli.md")
    commands = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, parser in commands.choices.items():
        assert f"safelight {name}" in page + _page("README.md"), name
        for action in parser._actions:
            option = action.option_strings[0] if action.option_strings else ""
            known = {f"--{setting.name.replace('_', '-')}" for setting in settings()}
            assert option in known | {"", "-h"} or option in page, f"{name} {option}"


def test_every_module_stands_in_the_architecture_page() -> None:
    page = _page("docs/architecture.md")
    for path in (ROOT / "src" / "safelight").rglob("*.py"):
        name = path.relative_to(ROOT / "src" / "safelight").as_posix()
        if path.name.startswith("__") or name.startswith("commands/"):
            continue
        assert f"`{name}`" in page, name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_paths_named_in_the_docs_exist(page: Path) -> None:
    text = page.read_text()
    for target in _LINK.findall(text):
        assert (page.parent / target).exists(), target
    for named in _CODE_PATH.findall(text):
        places = (ROOT / named, ROOT / "src" / "safelight" / named, page.parent / named)
        known = any(place.exists() for place in places) or list(ROOT.glob(f"src/safelight/**/{named}"))
        assert known or named in _ELSEWHERE, named


_ELSEWHERE = {"model_index.json"}
"""Files of a checkpoint, not of this repository."""


def test_every_picture_of_the_docs_is_shown() -> None:
    shown = {target for page in PAGES for target in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text())}
    names = {Path(target).name for target in shown}
    for picture in (ROOT / "docs" / "images").iterdir():
        if picture.suffix in (".png", ".webp"):
            assert picture.name in names, picture.name


def test_the_changelog_knows_this_version() -> None:
    assert f"## [{__version__}]" in _page("CHANGELOG.md")


def test_every_make_target_of_the_docs_exists() -> None:
    makefile = _page("Makefile")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:^|`)(?:\$ )?make ([a-z-]+)", page.read_text(), re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"
