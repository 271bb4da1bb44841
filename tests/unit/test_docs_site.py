"""The pages of ``docs/`` as a site: it builds without a warning, has every page, and asks nothing of other hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return folder


class _Loaded(HTMLParser):
    """Addresses that a browser loads by itself, and those that a reader may follow."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.followed: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "a":
            self.followed.append(found.get("href") or "")
        elif tag == "link":
            self.loaded.append(found.get("href") or "")
        self.loaded += [found[name] or "" for name in ("src", "srcset", "poster", "data") if name in found]


def test_every_page_of_the_docs_is_in_the_site(site: Path) -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert re.search(rf"^ +- (\w+: )?{re.escape(name)}$", navigation, re.MULTILINE), name
        assert (site / name).with_suffix(".html").is_file(), name


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) >= 15
    for page in pages:
        for address in _Loaded(page).loaded:
            assert not re.match(r"[a-z]+:|//", address), f"{page.name}: {address}"
    for sheet in site.rglob("*.css"):
        addresses = re.findall(r"(?:url\(|@import )[\"']?([^\"')]+)", sheet.read_text())
        assert not [address for address in addresses if re.match(r"https?:|//", address)], sheet.name


def test_every_link_of_the_site_leads_to_a_file_of_it(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # its addresses are from the root
            continue
        for address in _Loaded(page).followed:
            path = address.partition("#")[0]
            if path and not re.match(r"[a-z]+:", path):
                target = page.parent / path
                assert target.is_file() or (target / "index.html").is_file(), f"{page.name}: {address}"


def test_the_search_knows_the_settings(site: Path) -> None:
    assert "SAFELIGHT_QUEUE_LIMIT" in (site / "search" / "search_index.json").read_text()
