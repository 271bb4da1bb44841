"""The front of ``safelight serve`` with as many workers as asked, whatever devices the machine has.

``python -m benchmarks.front_process --workers 8 -- --port 8000 ...``: after ``--`` come the server's own options. It is
the server itself but for two things: which devices it finds, and, with ``--light``, what it starts as a worker.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from benchmarks import light_workers
from benchmarks.live_server import split_options
from safelight import cli
from safelight.server import fleet, front, serve
from safelight.server.devices import Device


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of the server."""
    own, server_options = split_options(list(sys.argv[1:] if arguments is None else arguments))
    args = _parser().parse_args(own)
    devices = [Device(f"cpu:{index}", "cpu", {"CUDA_VISIBLE_DEVICES": ""}) for index in range(args.workers)]
    with contextlib.ExitStack() as seams:
        seams.enter_context(mock.patch.object(fleet, "resolve_devices", lambda *_, **__: devices))
        if args.light:
            made = functools.partial(front.Front, worker_command=light_workers.command(args.light))
            seams.enter_context(mock.patch.object(serve, "Front", made))
        return _serve(server_options, args.profile)


def _serve(options: Sequence[str], profile_file: Path | None) -> int:
    if profile_file is None:
        return cli.main(["serve", *options])
    profile = cProfile.Profile()
    try:
        return profile.runcall(cli.main, ["serve", *options])
    finally:
        profile.dump_stats(profile_file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--workers", type=int, default=1, help="how many")
    parser.add_argument("--light", type=Path, metavar="ADDRESS", help="socket of light_workers.py; else real processes")
    parser.add_argument("--profile", type=Path, help="file for what cProfile saw on the loop's thread; slows it down")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
