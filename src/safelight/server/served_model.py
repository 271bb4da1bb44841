"""The model that this server serves, as far as its files tell."""

from __future__ import annotations

import asyncio
from pathlib import Path

from safelight.checkpoint import Checkpoint, open_checkpoint
from safelight.errors import LoadError, ModelNotFound, Unavailable
from safelight.model_card import ModelCard

LISTED_ALIASES = ("gpt-image-1", "dall-e-3")
_ALIAS_PREFIXES = ("gpt-image-", "dall-e-", "chatgpt-image-")


class ServedModel:
    """Knows its card once ``refresh`` has read the files; until then requests get the reason why not."""

    def __init__(
        self, name: str, models_dir: Path | None = None, *, base_model: str | None = None, has_aliases: bool = True
    ) -> None:
        self.name = name
        self._models_dir = models_dir
        self._base_model = base_model
        self._has_aliases = has_aliases
        self._checkpoint: Checkpoint | None = None
        self._error: LoadError | None = None
        self._was_read = asyncio.Event()

    async def refresh(self) -> None:
        """Reads the files again, in a thread. Raises ``LoadError`` if they are not a whole checkpoint."""
        try:
            found = await asyncio.to_thread(open_checkpoint, self.name, self._models_dir, self._base_model)
            self._checkpoint, self._error = found, None
        except LoadError as error:
            self._checkpoint, self._error = None, error
            raise
        finally:
            self._was_read.set()

    async def wait_for_card(self) -> ModelCard:
        """As ``card``, once the files have been read for the first time."""
        await self._was_read.wait()
        return self.card

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

    def check_name(self, asked: str | None) -> None:
        """Raises ``ModelNotFound`` unless ``asked`` is absent, this model, or a name that OpenAI clients hard-code."""
        if asked is None or asked in (self.name, self.card.id):
            return
        if self._has_aliases and asked.startswith(_ALIAS_PREFIXES):
            return
        raise ModelNotFound(f"the model {asked!r} is not served here; {self.card.id!r} is", param="model")
