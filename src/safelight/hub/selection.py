"""Which files of a repository a FLUX checkpoint in diffusers layout is made of: JSON, word lists and safetensors.

Left out are pickled weights, Python, pictures, variants such as ``model.fp16.safetensors``, and the single files that
hold the same weights again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from safelight.errors import PullError
from safelight.hub.client import HubFile
from safelight.hub.model_name import ModelName

INDEX_NAME = "model_index.json"
WEIGHTS_SUFFIX = ".safetensors"

_AT_THE_TOP = (INDEX_NAME, "safelight.json")
_WEIGHTS = r"(model|diffusion_pytorch_model)(?P<shard>-\d{5}-of-\d{5})?\.safetensors(?P<index>\.index\.json)?"
_IN_A_FOLDER = re.compile(
    rf"{_WEIGHTS}|(?![\w.-]*\.index\.)[\w-]+\.json|(vocab|merges|added_tokens)\.txt|[\w-]+\.model"
)


def needed_files(model: ModelName, files: Sequence[HubFile], folders: Collection[str]) -> list[HubFile]:
    """Small ones first, so that what is wrong with the model is known early.

    Raises ``PullError`` if it is not in diffusers layout, or has no safetensors.
    """
    sharded = {_folder(file.name) for file in files if file.name.endswith(f"{WEIGHTS_SUFFIX}.index.json")}
    found = [file for file in files if _is_needed(file.name, folders, sharded)]
    if not any(file.name == INDEX_NAME for file in found):
        raise PullError(
            f"{model} has no {INDEX_NAME}: Safelight serves FLUX.1 checkpoints in diffusers layout, not single files"
        )
    if not any(file.name.endswith(WEIGHTS_SUFFIX) for file in found):
        raise PullError(f"{model} has no weights in safetensors, and no others are loaded: look for a converted copy")
    return sorted(found, key=lambda file: (file.name.endswith(WEIGHTS_SUFFIX), file.name != INDEX_NAME, file.name))


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
