"""``safelight pull``: downloads a model at a pinned commit, to be served by its name."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from safelight.checkpoint import COMPONENTS, open_checkpoint, read_index
from safelight.commands.pull_progress import PullProgress, size_text
from safelight.errors import InvalidValue
from safelight.hub.access import read_access
from safelight.hub.client import HubClient
from safelight.hub.model_name import parse_model_name
from safelight.hub.pull import Pull, Pulled


def pull(args: argparse.Namespace, models_dir: Path) -> int:
    """Prints where the model lies, and how it is served. Raises a leaf of ``PullError``."""
    model = parse_model_name(args.model)
    if model is None:
        raise InvalidValue(f"{args.model!r} is no model of the hub: OWNER/NAME or OWNER/NAME@REVISION", param="model")
    access = read_access(args.endpoint, args.token_file, os.environ)
    with HubClient(access) as client, PullProgress() as progress:
        pulled = Pull(client, models_dir, model, COMPONENTS, read_index, progress).run()
    open_checkpoint(str(pulled.folder))
    print(_summary(pulled))
    print(f"serve it: safelight serve --model {model}")
    return 0


def _summary(pulled: Pulled) -> str:
    files = pulled.manifest.files.values()
    what = f"{len(files)} files, {size_text(sum(file.size_bytes for file in files))}"
    came = f"{size_text(pulled.downloaded_bytes)} downloaded" if pulled.downloaded_bytes else "all there already"
    return f"{pulled.manifest.repository}@{pulled.manifest.commit}: {what}, {came}, verified, in {pulled.folder}"
