"""What a model is made of, read from its JSON files and the headers of its weights alone; nothing here imports torch.

Both processes use it: the front for defaults, limits and a quick refusal of what cannot load, the worker as its plan
of components and bytes.
"""

from safelight.checkpoint.component import Checkpoint, Component
from safelight.checkpoint.directory import COMPONENTS, read_index
from safelight.checkpoint.opening import open_checkpoint
from safelight.checkpoint.single_file import BASE_COMPONENTS, read_base
from safelight.checkpoint.transformer_file import read_transformer_file

__all__ = [
    "BASE_COMPONENTS",
    "COMPONENTS",
    "Checkpoint",
    "Component",
    "open_checkpoint",
    "read_base",
    "read_index",
    "read_transformer_file",
]
