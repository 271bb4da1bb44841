"""A checkpoint and its components: which files hold what, and how large it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safelight.model_card import ModelCard


@dataclass(frozen=True, slots=True)
class Component:
    """One part of the pipeline. ``dtype`` is the number format that most of it has, as its file names it.

    ``files`` hold its weights, which are so many numbers (``weight_count``). ``config`` is given where it is not
    what ``config.json`` in ``folder`` says; ``is_single_file``: the tensors have the names of a single file.
    """

    name: str
    library: str
    class_name: str
    weight_bytes: int
    dtype: str | None
    folder: Path = Path()
    files: tuple[Path, ...] = ()
    weight_count: int = 0
    config: Mapping[str, Any] | None = None
    is_single_file: bool = False

    @property
    def source(self) -> Path:
        """What a sentence about it names."""
        return self.files[0] if self.is_single_file else self.folder


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that was found complete: a directory, or a single file with a base model for the rest.

    ``components`` are in the order in which they load. ``folders`` may have manifests of what their files must be; by
    folder, which of these files are used.
    """

    path: Path
    components: tuple[Component, ...]
    card: ModelCard
    folders: Mapping[Path, Callable[[str], bool]] = field(default_factory=dict)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights on disk."""
        return sum(component.weight_bytes for component in self.components)
