"""``safelight pull``: downloads a model at a pinned commit, to be served by its name."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from safelight.checkpoint import (
    BASE_COMPONENTS,
    COMPONENTS,
    open_checkpoint,
    read_base,
    read_index,
    read_transformer_file,
)
from safelight.commands.pull_progress import PullProgress, size_text
from safelight.errors import InvalidValue
from safelight.hub.access import read_access
from safelight.hub.client import HubClient
from safelight.hub.model_name import ModelName, parse_model_name
from safelight.hub.pull import Pull, Pulled


def pull(args: argparse.Namespace, models_dir: Path) -> int:
    """Prints where the model lies, and how it is served. Raises a leaf of ``PullError``."""
    model = parse_model_name(args.model)
    if model is None:
        raise InvalidValue(
            f"{args.model!r} is no model of the hub: OWNER/NAME or OWNER/NAME/FILE, each with @REVISION", param="model"
        )
    if args.base_only and model.file is not None:
        raise InvalidValue(f"{model} is a single file: it has no base model in it", param="base_only")
    folders = BASE_COMPONENTS if args.base_only else COMPONENTS
    access = read_access(args.endpoint, args.token_file, os.environ)
    with HubClient(access) as client, PullProgress() as progress:
        pulled = Pull(client, models_dir, model, folders, read_index, progress).run()
    if model.file is not None:
        read_transformer_file(pulled.folder / model.file)
    elif args.base_only:
        read_base(pulled.folder)
    else:
        open_checkpoint(str(pulled.folder))
    print(_summary(pulled))
    print(f"serve it: safelight serve {_options(model, args.base_only)}")
    return 0


def _options(model: ModelName, base_only: bool) -> str:
    if base_only:
        return f"--model FILE --base-model {model}"
    return f"--model {model}" if model.file is None else f"--model {model} --base-model MODEL"


def _summary(pulled: Pulled) -> str:
    files = pulled.manifest.files.values()
    what = f"{len(files)} files, {size_text(sum(file.size_bytes for file in files))}"
    came = f"{size_text(pulled.downloaded_bytes)} downloaded" if pulled.downloaded_bytes else "all there already"
    return f"{pulled.manifest.repository}@{pulled.manifest.commit}: {what}, {came}, verified, in {pulled.folder}"
