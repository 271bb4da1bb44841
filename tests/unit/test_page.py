"""The page as a server gives it away: to whom, how long it may be kept, what its policy allows."""

from __future__ import annotations

import gzip
import re
import tomllib
from pathlib import Path

import httpx2 as httpx
import pytest

from safelight.server.page import PREFIX, Page
from tests.unit.running_front import make_front, serving

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "src" / "safelight" / "page"
BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


async def test_browsers_get_the_page_and_other_clients_are_told_who_is_here(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with serving(make_front(tmp_path, model=str(checkpoint_dir))) as client:
        page = await client.get("/", headers=BROWSER)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["vary"] == "accept, accept-encoding"
        for headers in ({}, {"accept": "*/*"}, {"accept": "application/json"}):
            known = await client.get("/", headers=headers)
            assert (known.json()["name"], known.headers["vary"]) == ("safelight", "accept")
        assert (await client.head("/", headers=BROWSER)).status_code == 200


async def test_the_policy_allows_nothing_from_elsewhere_and_nothing_inline(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with serving(make_front(tmp_path, model=str(checkpoint_dir))) as client:
        page = await client.get("/", headers=BROWSER)
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert "unsafe" not in str(policy) and "http" not in str(policy) and "*" not in str(policy)
    assert set(re.findall(r"(?:src|href)=\"(/[^/\"]+)/", page.text)) == {"/page"}
    assert not re.search(r"<style|style=|<script(?![^>]* src=)| on\w+=", page.text)


async def test_files_may_be_kept_for_ever_and_the_page_is_asked_for_again(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with serving(make_front(tmp_path, model=str(checkpoint_dir))) as client:
        page = await client.get("/", headers=BROWSER)
        assert page.headers["cache-control"] == "no-cache"
        again = await client.get("/", headers=BROWSER | {"if-none-match": page.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        for address in re.findall(r"(?:src|href)=\"(/page/[^\"]+)", page.text):
            found = await client.get(address)
            assert found.status_code == 200, address
            assert "immutable" in found.headers["cache-control"]
            assert found.headers["x-content-type-options"] == "nosniff"


async def test_files_that_are_not_there_or_not_the_pages_are_not_found(tmp_path: Path, checkpoint_dir: Path) -> None:
    digest = Page().digest
    async with serving(make_front(tmp_path, model=str(checkpoint_dir))) as client:
        for path in (
            f"{digest}/nothing.js",
            f"{digest}/index.html",
            f"{digest}/..%2Fapi.py",
            "0000/app.js",
            f"{digest}/",
        ):
            assert (await client.get(PREFIX + path)).status_code == 404, path


async def test_files_come_compressed_for_those_who_can_read_that(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with serving(make_front(tmp_path, model=str(checkpoint_dir))) as client:
        address = f"{PREFIX}{Page().digest}/vendor/preact.js"
        sizes = {}
        for encoding in ("gzip", "identity"):
            async with client.stream("GET", address, headers={"accept-encoding": encoding}) as answer:
                raw = b"".join([piece async for piece in answer.aiter_raw()])
            assert answer.headers.get("content-encoding", "identity") == encoding
            data = gzip.decompress(raw) if encoding == "gzip" else raw
            assert data == (FOLDER / "vendor" / "preact.js").read_bytes()
            sizes[encoding] = len(raw)
        assert sizes["gzip"] < sizes["identity"] / 2


async def test_with_keys_the_page_is_public_and_what_it_shows_is_not(tmp_path: Path, checkpoint_dir: Path) -> None:
    from safelight.config import load_config

    keys = load_config({"api_keys": "alice=alice-secret-1"}, {}).api_keys
    async with serving(make_front(tmp_path, model=str(checkpoint_dir), api_keys=keys)) as client:
        page = await client.get("/", headers=BROWSER)
        assert page.status_code == 200
        for address in re.findall(r"(?:src|href)=\"(/page/[^\"]+)", page.text):
            assert (await client.get(address)).status_code == 200
        for path in ("/", "/v1/status", "/v1/models", "/v1/predictions"):
            assert (await client.get(path)).status_code == 401
        assert (await client.post("/", headers=BROWSER, json={"inputs": "a"})).status_code == 401
        assert (await client.get("/v1/status", headers=BROWSER)).status_code == 401


def test_another_content_has_another_address(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_bytes(b'<script src="/page/files/app.js"></script>')
    (tmp_path / "app.js").write_bytes(b"1")
    first = Page(tmp_path)
    assert first.index.data == f'<script src="{PREFIX}{first.digest}/app.js"></script>'.encode()
    (tmp_path / "app.js").write_bytes(b"2")
    assert Page(tmp_path).digest != first.digest


def test_every_import_of_the_page_is_one_of_its_files() -> None:
    for path in FOLDER.rglob("*.js"):
        for name in re.findall(r"""\bfrom ?["']([^"']+)["']""", path.read_text()):
            assert name.startswith("."), f"{path}: {name}"
            assert (path.parent / name).resolve().is_file(), f"{path}: {name}"


def test_the_page_is_in_the_wheel() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["src/safelight"]}  # all files of it, whatever their kind
    assert not any(
        line.strip() in ("*.js", "*.html", "page/") for line in (ROOT / ".gitignore").read_text().splitlines()
    )


def test_modules_of_the_page_are_short() -> None:
    for path in FOLDER.rglob("*.js"):
        if path.parent.name != "vendor":
            assert len(path.read_text().splitlines()) <= 350, path


async def test_the_page_of_a_server_has_no_absolute_address_of_itself(tmp_path: Path, checkpoint_dir: Path) -> None:
    """Behind a proxy its own idea of its name may be wrong."""
    async with serving(make_front(tmp_path, model=str(checkpoint_dir))) as client:
        assert isinstance(client, httpx.AsyncClient)
        assert "://" not in (await client.get("/", headers=BROWSER)).text
