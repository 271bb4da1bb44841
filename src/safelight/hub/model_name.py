"""What people call a model on the hub: ``owner/name``, or ``owner/name/file.gguf`` for one file, ``@revision``."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAME = re.compile(
    r"(?P<repository>[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95})"
    r"(/(?P<file>(\w[\w.+-]{0,127}/){0,8}\w[\w.+-]{0,127}\.(safetensors|sft|gguf)))?"
    r"(@(?P<revision>[\w.][\w./-]{0,254}))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class ModelName:
    """A repository, and the branch, tag or commit that is meant; ``None``: whichever is the usual one.

    ``file`` is the path of the one file that is meant, ``None`` for a whole checkpoint.
    """

    repository: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        name = self.repository if self.file is None else f"{self.repository}/{self.file}"
        return name if self.revision is None else f"{name}@{self.revision}"


def parse_model_name(text: str) -> ModelName | None:
    """``None`` if it is no such name. Its parts are safe as parts of a path."""
    found = _NAME.fullmatch(text)
    if found is None or ".." in text or found["repository"].endswith("."):
        return None
    return ModelName(found["repository"], found["revision"], found["file"])
