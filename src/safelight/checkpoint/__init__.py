"""What a model is made of, read from its JSON files and the headers of its weights alone; nothing here imports torch.

Both processes use it: the front for defaults, limits and a quick refusal of what cannot load, the worker as its plan
of components and bytes.
"""

from safelight.checkpoint.component import Checkpoint, Component
from safelight.checkpoint.directory import COMPONENTS, read_index
from safelight.checkpoint.opening import open_checkpoint

__all__ = ["COMPONENTS", "Checkpoint", "Component", "open_checkpoint", "read_index"]
