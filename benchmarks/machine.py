"""Where and with what a benchmark ran, as its recorded result must say."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

_PACKAGES = ("torch", "diffusers", "transformers", "fastapi", "uvicorn")


def circumstances(command: str) -> dict[str, object]:
    """Machine, versions, commit, command and date; no name of the machine and no path on it."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "commit": commit(),
        "machine": {
            "cpu": _cpu_name(),
            "cores": psutil.cpu_count() or 1,
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "system": f"{platform.system()} {platform.machine()}",
            "load_average_before": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
    }


def commit() -> str:
    """The commit of the checkout, with ``-dirty`` if the server's sources differ from it; ``unknown`` without git."""
    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", "src", "run.py") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


class OtherProcesses:
    """How much of the cores went to processes that this one did not start, from its making to ``share``.

    Only children that have ended and were waited for count as started here, so ask after they are gone.
    """

    def __init__(self) -> None:
        self._wall_s = time.monotonic()
        self._busy_s = _busy_s()
        self._own_s = _own_s()

    def share(self) -> float:
        """From 0 to 1 of all cores; the accounting is good to a few per cent of a second."""
        wall_s = time.monotonic() - self._wall_s
        others_s = (_busy_s() - self._busy_s) - (_own_s() - self._own_s)
        return max(others_s, 0.0) / (wall_s * (psutil.cpu_count() or 1))


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def _own_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
