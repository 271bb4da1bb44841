"""The commands of the docs: what stands in blocks marked ``sh``, ``bash``, ``python`` or ``js`` can be run as it is.

Blocks marked ``console`` are only shown; their lines begin with ``$``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.environments import node_with, python_with
from tests.server_process import ROOT

ADDRESS = "http://127.0.0.1:8000"
OPENAI_JS = ("node@22", "openai@7")

_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block, without the indentation that a list gave it."""

    language: str
    code: str

    def run(self, url: str, folder: Path) -> str:
        """Runs it in that folder against the server at ``url``; what it printed. Fails if it does not exit with 0."""
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SAFELIGHT_PORT": "0",
        }
        done = subprocess.run(
            self._command(self.code.replace(ADDRESS, url), folder),
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        assert done.returncode == 0, f"{self.code}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _command(self, code: str, folder: Path) -> list[str]:
        if self.language == "js":
            place = node_with("node", *OPENAI_JS)  # a module's imports are looked for beside it
            script = place / f"{folder.name}.mjs"
            script.write_text(code)
            return [str(place / "node_modules/.bin/node"), str(script)]
        if self.language == "python":
            python = python_with("replicate", "replicate==1.0.7") if "import replicate" in code else [sys.executable]
            return [*python, "-c", code]
        return [str(shutil.which("bash")), "-euo", "pipefail", "-c", code]


def blocks(page: Path, *languages: str) -> list[Block]:
    """The page's blocks in these languages, in their order."""
    found = re.findall(r"^( *)```(\w+)\n(.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [
        Block(language, re.sub(rf"^{indent}", "", code, flags=re.MULTILINE))
        for indent, language, code in found
        if language in languages
    ]


def shown_commands(page: Path) -> list[str]:
    """The lines after ``$`` in the page's ``console`` blocks, continuations joined."""
    text = "".join(block.code for block in blocks(page, "console")).replace("\\\n", " ")
    return re.findall(r"^\$ (.*)$", text, re.MULTILINE)


DOCS = sorted((ROOT / "docs").glob("*.md"))
RUNNABLE = ("sh", "python", "js")
