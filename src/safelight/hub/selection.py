"""Which files of a repository a model needs: the one that was named, or all that a checkpoint is made of.

A FLUX checkpoint in diffusers layout is JSON, word lists and safetensors. Left out are pickled weights, Python,
pictures, variants such as ``model.fp16.safetensors``, and the single files that hold the same weights again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from safelight.errors import PullError
from safelight.hub.client import HubFile
from safelight.hub.manifest import INDEX_NAME
from safelight.hub.model_name import ModelName

WEIGHTS_SUFFIX = ".safetensors"

_OFFERED = 5
_AT_THE_TOP = (INDEX_NAME, "safelight.json")
_WEIGHTS = r"(model|diffusion_pytorch_model)(?P<shard>-\d{5}-of-\d{5})?\.safetensors(?P<index>\.index\.json)?"
_IN_A_FOLDER = re.compile(
    rf"{_WEIGHTS}|(?![\w.-]*\.index\.)[\w-]+\.json|(vocab|merges|added_tokens)\.txt|[\w-]+\.model"
)


def needed_files(model: ModelName, files: Sequence[HubFile], folders: Collection[str]) -> list[HubFile]:
    """Small ones first, so that what is wrong with the model is known early.

    Raises ``PullError`` if the named file is not there; if none is named, where the layout is not that of diffusers, or
    there are no safetensors.
    """
    if model.file is not None:
        return [_single(model, files)]
    sharded = {_folder(file.name) for file in files if file.name.endswith(f"{WEIGHTS_SUFFIX}.index.json")}
    found = [file for file in files if _is_needed(file.name, folders, sharded)]
    if not any(file.name == INDEX_NAME for file in found):
        raise PullError(f"{model} has no {INDEX_NAME}: it is no checkpoint in diffusers layout{_offer(model, files)}")
    if not any(file.name.endswith(WEIGHTS_SUFFIX) for file in found):
        raise PullError(f"{model} has no weights in safetensors, and no others are loaded: look for a converted copy")
    return sorted(found, key=lambda file: (file.name.endswith(WEIGHTS_SUFFIX), file.name != INDEX_NAME, file.name))


def _single(model: ModelName, files: Sequence[HubFile]) -> HubFile:
    for file in files:
        if file.name == model.file:
            return file
    raise PullError(f"{model.repository} has no file {model.file}{_offer(model, files)}")


def _offer(model: ModelName, files: Sequence[HubFile]) -> str:
    """Its single files, which can be named instead."""
    names = sorted(file.name for file in files if file.name.endswith((WEIGHTS_SUFFIX, ".gguf")))
    if not names:
        return ""
    more = f" and {len(names) - _OFFERED} more" if len(names) > _OFFERED else ""
    return f"; name one of its files as {model.repository}/FILE: {', '.join(names[:_OFFERED])}{more}"


def _is_needed(name: str, folders: Collection[str], sharded: Collection[str]) -> bool:
    if name in _AT_THE_TOP:
        return True
    folder, _, file = name.rpartition("/")
    match = _IN_A_FOLDER.fullmatch(file)
    if folder not in folders or match is None:
        return False
    is_whole = file.endswith(WEIGHTS_SUFFIX) and match["shard"] is None
    return not (is_whole and folder in sharded)


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
