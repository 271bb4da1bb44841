"""Every example of ``docs/`` runs as it stands, but for the address, page by page, in a folder of the page's own."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

from safelight.config import STUB_MODEL
from tests.documented_commands import DOCS, RUNNABLE, blocks
from tests.server_process import ROOT, ServerProcess

PAGES = [page for page in DOCS if blocks(page, *RUNNABLE)]


def test_every_api_has_an_example() -> None:
    text = "".join(block.code for block in blocks(ROOT / "docs" / "http-api.md", *RUNNABLE))
    for api in ("images.generate(", "/v1/images/edits", "replicate", "InferenceClient", "/sdapi/", "flux-dev", "/v2/"):
        assert api in text, api


def test_every_task_has_commands_that_run() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    tasks = set(re.findall(r"^\| \[[^\]]+\]\(([\w-]+\.md)\)", index, re.MULTILINE))
    assert len(tasks) >= 9
    # They have tests of their own, with other real parts.
    others = {"run-on-kubernetes.md", "page.md", "pull.md", "serve-a-single-file.md"}
    assert tasks - {page.name for page in PAGES} <= others


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run(page: Path, server: ServerProcess, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with _server_for(page, server, tmp_path) as (url, data_dir):
        folder = tmp_path / page.stem
        folder.mkdir()
        (folder / "safelight-data").symlink_to(data_dir)
        (folder / "FLUX.1-dev").symlink_to(tiny_checkpoint)
        for block in blocks(page, *RUNNABLE):
            before = _files(folder)
            printed = block.run(url, folder)
            assert printed.strip() or _files(folder) != before or "InferenceClient" in block.code, block.code
            assert re.findall(r'"code": ?"(\w+)"', printed) == re.findall(r"# 4\d\d (\w+)", block.code), printed
        _check_pictures(folder, is_embedded=url == server.url)


def test_a_backup_made_as_documented_has_the_jobs_and_their_pictures(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "safelight-data").symlink_to(_data_dir_of(server))
    job = server.get(f"/v1/predictions/{server.generate().headers['x-job-id']}").json()
    for block in blocks(ROOT / "docs" / "back-up-and-upgrade.md", *RUNNABLE):
        block.run(server.url, tmp_path)
    with ServerProcess(tmp_path / "backup", "--model", STUB_MODEL) as restored:
        again = restored.get(f"/v1/predictions/{job['id']}").json()
        assert (again["id"], again["status"]) == (job["id"], "succeeded")
        link, old_link = (urlsplit(found["output"][0]) for found in (again, job))
        picture = restored.get(f"{link.path}?{link.query}")
        assert picture.content.startswith(b"\x89PNG")
        assert restored.get(f"{old_link.path}?{old_link.query}").content == picture.content, "old links stay valid"


def _data_dir_of(server: ServerProcess) -> Path:
    arguments = server.process.args
    assert isinstance(arguments, list)
    return Path(arguments[arguments.index("--data-dir") + 1])


def _files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def _check_pictures(folder: Path, *, is_embedded: bool) -> None:
    for path in [path for path in folder.iterdir() if path.suffix in (".png", ".webp")]:
        with Image.open(path) as picture:
            picture.load()
            assert picture.size == (256, 256) or not is_embedded or "step" in path.name, path.name


@contextlib.contextmanager
def _server_for(page: Path, server: ServerProcess, folder: Path) -> Iterator[tuple[str, Path]]:
    """Its URL and data directory. A page with settings of its own gets a server that has them, with the stub engine
    unless it names models."""
    settings = blocks(page, "toml")
    if not settings:
        yield server.url, _data_dir_of(server)
        return
    file = folder / "safelight.toml"
    file.write_text(settings[0].code)
    data_dir = folder / "data"
    model = () if "[[models]]" in settings[0].code else ("--model", STUB_MODEL)
    with ServerProcess(data_dir, *model, "--config", str(file)) as own:
        own.wait_for_line("worker 0 ready")
        yield own.url, data_dir
        assert own.stop() == 0
