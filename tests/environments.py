"""Environments of their own for packages that clash with ours, made once under ``.clients/``."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.server_process import ROOT

_TIMEOUT_S = 180


def folder_of(name: str, packages: Sequence[str]) -> Path:
    """Another one for other versions."""
    return ROOT / ".clients" / f"{name}-{hashlib.sha256(' '.join(packages).encode()).hexdigest()[:12]}"


def installed(folder: Path, *command: str) -> Path:
    """What the command installs there, once; a folder that was left half made is made again."""
    marker = folder / "installed"
    if not marker.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        subprocess.run(command, check=True, cwd=folder, timeout=_TIMEOUT_S, stdout=subprocess.DEVNULL)
        marker.touch()
    return folder


def python_with(name: str, *packages: str, paths: Sequence[Path] = ()) -> list[str]:
    """The command of an interpreter that has these packages, and nothing of ours but ``paths``."""
    folder = folder_of(name, packages)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--target", str(folder))
    installed(folder, *pip, *packages)
    path = ":".join(map(str, (folder, *paths)))
    return ["env", f"PYTHONPATH={path}", str(getattr(sys, "_base_executable", sys.executable)), "-s"]


def node_with(name: str, *packages: str) -> Path:
    """A folder whose modules find these packages; a package ``node`` among them is at ``node_modules/.bin/node``."""
    folder = folder_of(name, packages)
    npm = ("npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(folder))
    return installed(folder, *npm, *packages)
