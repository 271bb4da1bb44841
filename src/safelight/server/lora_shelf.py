"""``LoraShelf``: the LoRA adapters that can be asked for, as far as the headers of their files tell."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safelight.checkpoint import Checkpoint
from safelight.errors import InvalidValue, LoraInvalid, Unavailable, UnsupportedValue
from safelight.lora.directory import AdapterDirectories
from safelight.lora.layers import Layers, checkpoint_layers
from safelight.params import LoraUse
from safelight.server.served_model import ServedModel


class LoraShelf:
    """The adapters of ``loras_dir`` and those that come with ``model``, for which they are looked at."""

    def __init__(self, loras_dir: Path, model: ServedModel) -> None:
        self._loras_dir = loras_dir
        self._model = model
        self._known: tuple[Checkpoint, AdapterDirectories, Layers] | None = None

    async def entries(self) -> list[dict[str, Any]]:
        """One for each adapter: its size, rank and layers, and why it does not fit if it does not.

        None as long as there is no model that they could fit.
        """
        try:
            await self._model.wait_for_card()
        except Unavailable:
            return []
        return await asyncio.to_thread(self._entries)

    async def fitting(self) -> list[str]:
        """Names of those that can be used."""
        return [entry["name"] for entry in await self.entries() if entry["fits"]]

    async def check(self, uses: Sequence[LoraUse]) -> None:
        """Raises a leaf of ``InvalidRequest`` for one that is not there, or does not fit the model."""
        if uses:
            await self._model.wait_for_card()
            await asyncio.to_thread(self._check, uses)

    def _entries(self) -> list[dict[str, Any]]:
        return [entry for name in self._directories.names() if (entry := self._entry(name)) is not None]

    def _entry(self, name: str) -> dict[str, Any] | None:
        entry: dict[str, Any] = {"id": name, "object": "lora", "name": name, "fits": False, "reason": None}
        try:
            file = self._directories.read(name)
            entry |= {"bytes": file.size_bytes, "rank": file.rank, "layers": len(file.layers)}
            entry["text_encoder_layers"] = file.text_encoder_layers
            file.pieces(self._layers)
        except (LoraInvalid, UnsupportedValue) as error:
            return entry | {"reason": error.message}
        except InvalidValue:  # it is gone meanwhile
            return None
        return entry | {"fits": True}

    def _check(self, uses: Sequence[LoraUse]) -> None:
        for use in uses:
            self._directories.read(use.name).pieces(self._layers)

    @property
    def _directories(self) -> AdapterDirectories:
        return self._of_model()[1]

    @property
    def _layers(self) -> Layers:
        """Raises ``UnsupportedValue`` for a model without a transformer that is known."""
        layers = self._of_model()[2]
        if not layers:
            raise UnsupportedValue(f"{self._model.card.id} takes no LoRA adapters", param="loras")
        return layers

    def _of_model(self) -> tuple[Checkpoint, AdapterDirectories, Layers]:
        checkpoint = self._model.checkpoint
        if self._known is None or self._known[0] is not checkpoint:
            self._known = checkpoint, AdapterDirectories.of(checkpoint, self._loras_dir), checkpoint_layers(checkpoint)
        return self._known


class LoraShelves:
    """A shelf for each model: the same adapter may fit one and not the other."""

    def __init__(self, loras_dir: Path) -> None:
        self._loras_dir = loras_dir
        self._shelves: dict[str, LoraShelf] = {}

    def of(self, model: ServedModel) -> LoraShelf:
        """The same one for the same model."""
        if model.name not in self._shelves:
            self._shelves[model.name] = LoraShelf(self._loras_dir, model)
        return self._shelves[model.name]
