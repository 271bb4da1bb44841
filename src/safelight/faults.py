"""Fault points: places where a test can make the real program fail. Nothing happens at them unless ``arm`` was called.

A specification such as ``engine.step@3=kill;results.write=full`` names points, the hits that count, and actions:
``@3`` is the third hit, ``@3+`` every hit from the third on, none at all every hit. Hits are counted over all
processes of one server and over its restarts, in files of one folder, so that "once" means once. A point that begins
with ``1:`` is one of worker 1 alone, with hits of its own.

Actions done here: ``kill`` (SIGKILL to this process), ``stop`` (SIGSTOP), ``hang`` (sleeps an hour), ``sleep:SECONDS``,
``error`` (RuntimeError), ``full`` (OSError, no space left). Any other action is returned for the caller to do.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

_RULE = re.compile(
    r"((?P<worker>[0-9]{1,3}):)?(?P<point>[a-z_]+\.[a-z_]+)(@(?P<hit>[0-9]{1,6})(?P<onward>\+)?)?=(?P<action>[a-z_]+(:[0-9.]+)?)"
)

_rules: list[_Rule] = []
_folder: Path | None = None


@dataclass(frozen=True, slots=True)
class _Rule:
    point: str
    first_hit: int
    last_hit: float
    action: str
    worker_id: int | None = None


def parse(specification: str) -> list[_Rule]:
    """The rules of a specification. Raises ``ValueError`` for one that is malformed."""
    rules = []
    for part in filter(None, specification.split(";")):
        found = _RULE.fullmatch(part.strip())
        if not found:
            raise ValueError(f"has {part!r}, which is not POINT[@HIT[+]]=ACTION")
        hit = int(found["hit"] or 1)
        once = found["hit"] and not found["onward"]
        worker_id = int(found["worker"]) if found["worker"] else None
        rules.append(_Rule(found["point"], hit, hit if once else float("inf"), found["action"], worker_id))
    return rules


def arm(specification: str, folder: Path, worker_id: int | None = None) -> None:
    """Switches the points of ``specification`` on in this process, which is that worker if any; ``folder`` keeps the
    counts.
    """
    global _folder
    _rules[:] = [rule for rule in parse(specification) if rule.worker_id in (None, worker_id)]
    _folder = folder
    if _rules:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def fault(point: str) -> str | None:
    """Marks a fault point; the name of an action that the caller is to do, nearly always ``None``."""
    if not _rules:
        return None
    hit = None
    for rule in _rules:
        if rule.point == point:
            hit = hit or _count(point if rule.worker_id is None else f"{rule.worker_id}:{point}")
            if rule.first_hit <= hit <= rule.last_hit:
                return _act(rule.action)
    return None


def _count(point: str) -> int:
    """One more hit, over all processes: appending a byte to a file is atomic."""
    assert _folder is not None
    fd = os.open(_folder / point, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, b".")
        return os.lseek(fd, 0, os.SEEK_CUR)
    finally:
        os.close(fd)


def _act(action: str) -> str | None:
    name, _, argument = action.partition(":")
    match name:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "hang":
            time.sleep(3600)
        case "sleep":
            time.sleep(float(argument))
        case "error":
            raise RuntimeError("a fault point raised this error")
        case "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case _:
            return action
    return None
