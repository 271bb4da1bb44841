"""``safelight workers``: the workers of a running server are listed, and get new processes one after the other."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from safelight.client import Client, find_server
from safelight.errors import Unavailable
from safelight.status_text import duration_text, state_style
from safelight.terminal import Look, look_of, printable

_TITLES = ("ID", "DEVICE", "STATE", "MODEL", "JOBS", "TIME", "RESTARTS", "ERROR")
_STATE = _TITLES.index("STATE")


def list_workers(args: argparse.Namespace) -> int:
    """One line a worker."""
    workers = find_server(args.url, args.api_key).status()["workers"]
    for line in _table([_cells(worker) for worker in workers], look_of(sys.stdout)):
        print(line)
    return 0


def restart_workers(args: argparse.Namespace) -> int:
    """Tells of each new process, until all are there; exit code 1 if one could not be had."""
    client = find_server(args.url, args.api_key)
    rollout = client.restart_workers(args.id, args.model)
    if not args.no_wait:
        rollout = _watched(client, rollout)
    if rollout["state"] == "failed":
        print(f"safelight: {printable(rollout['error'])}", file=sys.stderr)
        return 1
    return 0


ACTIONS = {"list": list_workers, "restart": restart_workers}


def _watched(client: Client, rollout: dict[str, Any]) -> dict[str, Any]:
    """How it ended."""
    told: list[int] = []
    statuses = client.status_events()
    while rollout["state"] == "running" or rollout["done"] != told:
        for worker_id in rollout["done"][len(told) :]:
            print(f"worker {worker_id} has a new process", flush=True)
        told = list(rollout["done"])
        if rollout["state"] == "running":
            status = next(statuses, None)
            if status is None:
                raise Unavailable("the server ended before all workers had new processes")
            rollout = status["rollout"]
    return rollout


def _cells(worker: dict[str, Any]) -> Sequence[str]:
    left_s = worker["remaining_s"]
    return (
        str(worker["id"]),
        worker["device"],
        worker["state"],
        printable(worker["model"] or ""),
        str(len(worker["jobs"])),
        f"{duration_text(left_s)} left" if left_s else "",
        str(worker["restarts"]),
        printable(worker["error"] or ""),
    )


def _table(rows: Sequence[Sequence[str]], look: Look) -> list[str]:
    widths = [max(len(row[column]) for row in (_TITLES, *rows)) for column in range(len(_TITLES))]
    lines = ["  ".join(title.ljust(width) for title, width in zip(_TITLES, widths, strict=True)).rstrip()]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells[_STATE] = look.styled(cells[_STATE], state_style(row[_STATE]))
        lines.append("  ".join(cells).rstrip())
    return lines
