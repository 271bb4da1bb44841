"""The models that this server serves, by the names that they answer to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import msgspec

from safelight.config import Config
from safelight.errors import LoadError, ModelNotFound
from safelight.jobs import JobRequest
from safelight.server.served_model import ServedModel

LISTED_ALIASES = ("gpt-image-1", "dall-e-3")
_ALIAS_PREFIXES = ("gpt-image-", "dall-e-", "chatgpt-image-")


class Catalogue:
    """In the order of the settings. The first is the default: what requests mean that name none."""

    def __init__(self, config: Config) -> None:
        self._models = {entry.key: ServedModel(entry, config) for entry in config.entries}
        self._has_aliases = config.model_aliases != "off"

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def __len__(self) -> int:
        return len(self._models)

    @property
    def default(self) -> ServedModel:
        return next(iter(self))

    async def refresh(self) -> None:
        """Reads the files of all; what is wrong with some becomes their error."""

        async def read(model: ServedModel) -> None:
            with contextlib.suppress(LoadError):
                await model.refresh()

        await asyncio.gather(*(read(model) for model in self))

    def find(self, asked: str | None) -> ServedModel:
        """The model that a request means. Raises ``ModelNotFound``; ``LoadError`` if it may be one that is unreadable.

        Names that OpenAI's clients hard-code mean the default.
        """
        if asked is None:
            return self.default
        if (found := self.named(asked)) is not None:
            return found
        if self._has_aliases and asked.startswith(_ALIAS_PREFIXES):
            return self.default
        for model in self:
            if not model.is_named:
                _ = model.card  # its name is in its files
        raise self._unknown(asked)

    def listed(self, name: str) -> ServedModel:
        """The model that an operator means: as ``find``, but exactly. Raises ``ModelNotFound``."""
        if (found := self.named(name)) is None:
            raise self._unknown(name)
        return found

    def _unknown(self, name: str) -> ModelNotFound:
        served = ", ".join(repr(model.id) for model in self)
        verb = "is" if len(self) == 1 else "are"
        return ModelNotFound(f"the model {name!r} is not served here; {served} {verb}", param="model")

    async def wait_for(self, asked: str | None) -> ServedModel:
        """As ``find``, once all files have been read for the first time."""
        for model in self:
            await model.wait_until_read()
        return self.find(asked)

    def named(self, name: str) -> ServedModel | None:
        """The model with exactly this name, in any of its forms."""
        if name in self._models:
            return self._models[name]
        return next((model for model in self if name in model.other_names), None)

    def id_of(self, request: JobRequest) -> str:
        """How its model is called in lists; as the request has it, if it is not served any more."""
        model = self.named(request.model) if request.model else self.default
        return request.model if model is None else model.id

    def resolved(self, request: JobRequest) -> JobRequest:
        """With the name that its model has here; without one it is the default's. Raises ``ModelNotFound``."""
        model = self.named(request.model) if request.model else self.default
        if model is None:
            raise ModelNotFound(f"the model {request.model!r} is not served here any more", param="model")
        return msgspec.structs.replace(request, model=model.name)
