"""A hook of MkDocs: what the pages link to outside ``docs/`` becomes part of the site, below ``project/``.

So the same relative links work on a git host and in the site, and none of them leads out of it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

_LINK = re.compile(r"(\[[^\]]*\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds every file that a page links to, and those that these link to in turn."""
    pages = [Path(str(file.abs_src_path)) for file in files.documentation_pages()]
    known = {file.src_uri for file in files}
    while pages:
        for target in _targets(pages.pop()):
            if target.is_file() and _place(target) not in known:
                known.add(_place(target))
                files.append(File.generated(config, _place(target), abs_src_path=str(target)))
                pages += [target] if target.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links to where their files lie in the site; a folder has no page there, so its link is only its text."""
    source = Path(str(page.file.abs_src_path))
    here = posixpath.dirname(page.file.src_uri) or "."

    def moved(link: re.Match[str]) -> str:
        target = (source.parent / link[2]).resolve()
        if target.is_dir():
            return link[1][1:-2]
        return f"{link[1]}{posixpath.relpath(_place(target), here)}{link[3]}" if target.is_file() else link[0]

    return _LINK.sub(moved, markdown)


def _targets(page: Path) -> Iterator[Path]:
    for _, target, _ in _LINK.findall(page.read_text(encoding="utf-8")):
        yield (page.parent / target).resolve()


def _place(target: Path) -> str:
    """Where a file lies in the site."""
    return (
        target.relative_to(DOCS) if target.is_relative_to(DOCS) else "project" / target.relative_to(ROOT)
    ).as_posix()
