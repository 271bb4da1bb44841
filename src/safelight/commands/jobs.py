"""``safelight jobs``: the jobs of a running server are listed, shown and cancelled, and their pictures saved."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from safelight.client import Client, find_server
from safelight.commands.developing import Developing
from safelight.commands.job_text import is_over, job_facts, job_table, short_id, status_of
from safelight.commands.picture_file import write_picture
from safelight.commands.terminal_support import picture_terminal
from safelight.errors import JobNotFinished, NotFound
from safelight.terminal import look_of

_SUFFIXES = {"jpeg": "jpg"}
_SEARCHED_JOBS = 1000


def list_jobs(args: argparse.Namespace) -> int:
    """One line a job, newest first."""
    jobs = find_server(args.url, args.api_key).jobs(args.limit)
    if args.json:
        print(json.dumps(jobs, indent=2))
        return 0
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in job_table(jobs, columns, look_of(sys.stdout)):
        print(line)
    return 0


def show_job(args: argparse.Namespace) -> int:
    """What is known of one job, and its first picture where the terminal can show it."""
    client = find_server(args.url, args.api_key)
    job = _find(client, args.id)
    if args.json:
        print(json.dumps(job, indent=2))
        return 0
    for name, text in job_facts(job):
        print(f"{name:<9} {text}")
    pictures = picture_terminal(args.show)
    if pictures is not None and job["status"] == "succeeded":
        with Developing(pictures) as developing:
            developing.picture(client.picture_file(job["id"], 0))
    return 0


def cancel_job(args: argparse.Namespace) -> int:
    """Exit code 1 if it had ended already."""
    client = find_server(args.url, args.api_key)
    job = _find(client, args.id)
    if is_over(job):
        print(f"safelight: {job['id']} had ended already: {status_of(job)}", file=sys.stderr)
        return 1
    job = client.cancel(job["id"])
    print(f"{job['id']}: {status_of(job) if is_over(job) else 'stops at its next step'}")
    return 0


def save_job(args: argparse.Namespace) -> int:
    """Writes the pictures of a job; the second and following ones beside the first, with a number."""
    client = find_server(args.url, args.api_key)
    job = _find(client, args.id)
    if job["status"] != "succeeded":
        raise JobNotFinished(f"{job['id']} has no pictures: it is {status_of(job)}")
    image_format = job["params"]["output_format"]
    first = args.output or Path(f"{short_id(job['id'])}.{_SUFFIXES.get(image_format, image_format)}")
    for index in range(job["params"]["num_images"]):
        path = first if index == 0 else first.with_stem(f"{first.stem}-{index + 1}")
        write_picture(path, client.picture_file(job["id"], index))
        print(f"{path} (seed {job['seed'] + index})")
    return 0


ACTIONS = {"list": list_jobs, "show": show_job, "cancel": cancel_job, "save": save_job}


def _find(client: Client, name: str) -> dict[str, Any]:
    """The job of that id, or the only one whose id begins so. Raises ``NotFound``."""
    try:
        return client.job(name)
    except NotFound:
        matching = [job for job in client.jobs(_SEARCHED_JOBS) if job["id"].startswith(name)]
        if len(matching) > 1:
            raise NotFound(f"{len(matching)} jobs have ids that begin with {name!r}") from None
        if not matching:
            raise
        return client.job(matching[0]["id"])
