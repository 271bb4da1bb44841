"""One of the models that this server serves, as far as its files tell."""

from __future__ import annotations

import asyncio

from safelight.checkpoint import Checkpoint, open_checkpoint
from safelight.config import Config
from safelight.errors import LoadError, Unavailable
from safelight.model_card import ModelCard
from safelight.model_list import ModelEntry


class ServedModel:
    """Knows its card once ``refresh`` has read the files; until then requests get the reason why not.

    ``name`` tells it from the others, for jobs too; ``config`` are the settings that hold for it. One that
    ``is_pinned`` stays on a device.
    """

    def __init__(self, entry: ModelEntry, config: Config) -> None:
        self.name = entry.key
        self.config = config.of(entry)
        self.is_pinned = entry.is_pinned
        self.is_named = bool(entry.name)
        self._checkpoint: Checkpoint | None = None
        self._error: LoadError | None = None
        self._was_read = asyncio.Event()

    async def refresh(self) -> None:
        """Reads the files again, in a thread. Raises ``LoadError`` if they are not a whole checkpoint."""
        try:
            self._checkpoint = await asyncio.to_thread(_open, self.config)
            self._error = None
        except LoadError as error:
            self._checkpoint, self._error = None, error
            raise
        finally:
            self._was_read.set()

    async def wait_until_read(self) -> None:
        """Until the files have been read for the first time, whatever came of it."""
        await self._was_read.wait()

    async def wait_for_card(self) -> ModelCard:
        """As ``card``, once the files have been read for the first time."""
        await self.wait_until_read()
        return self.card

    @property
    def id(self) -> str:
        """What it is called in lists: the name that it was given, else what its files say."""
        return self.name if self.is_named or self._checkpoint is None else self._checkpoint.card.id

    @property
    def other_names(self) -> tuple[str, ...]:
        """What it answers to beside ``name``: what is loaded, and what its files say."""
        return (self.config.model, *((self._checkpoint.card.id,) if self._checkpoint else ()))

    @property
    def checkpoint(self) -> Checkpoint:
        """Raises ``LoadError`` or ``Unavailable`` while the files are not readable."""
        if self._checkpoint is None:
            raise self._error or Unavailable("the model's files are still being read", retry_after_s=1)
        return self._checkpoint

    @property
    def card(self) -> ModelCard:
        """Raises as ``checkpoint``."""
        return self.checkpoint.card

    @property
    def is_known(self) -> bool:
        """Whether there is a card."""
        return self._checkpoint is not None

    @property
    def error(self) -> LoadError | None:
        """What was wrong with its files when they were read last."""
        return self._error

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights on disk, 0 while unknown."""
        return self._checkpoint.weight_bytes if self._checkpoint else 0

    @property
    def components_total(self) -> int:
        return len(self._checkpoint.components) if self._checkpoint else 0

    @property
    def component_bytes(self) -> dict[str, int]:
        """Bytes of the weights of each component, in loading order; empty while unknown."""
        return {part.name: part.weight_bytes for part in self._checkpoint.components} if self._checkpoint else {}

    def loaded_bytes(self, device: str) -> int:
        """Bytes of the weights in the number format that they have on a device of this name."""
        if self._checkpoint is None:
            return 0
        weight_count = sum(part.weight_count for part in self._checkpoint.components)
        return weight_count * _item_bytes(self.config, device)


def _open(config: Config) -> Checkpoint:
    return open_checkpoint(config.model, config.pulled_models, config.base_model)


def _item_bytes(config: Config, device: str) -> int:
    if config.precision != "auto":
        return 2
    if config.dtype != "auto":
        return 4 if config.dtype == "float32" else 2
    return 2 if device.startswith("cuda") else 4
