"""LoRA adapters in the host's memory: read from their files, checked, kept for the jobs that come."""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from typing import NamedTuple

import torch

from safelight.errors import LoraInvalid
from safelight.lora.adapter_file import AdapterFile, FileLayer, Identity, Piece
from safelight.lora.directory import AdapterDirectories
from safelight.lora.layers import Layers
from safelight.params import LoraUse

log = logging.getLogger(__name__)

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAX_FACTOR = 1000.0
"""Alpha over the rank; trainers write 0.5 to 2, seldom 32."""


class Change(NamedTuple):
    """Of one layer, by ``factor * up @ down``; ``down`` is (rank, in), ``up`` (out, rank)."""

    down: torch.Tensor
    up: torch.Tensor
    factor: float


@dataclass(frozen=True, slots=True)
class Adapter:
    """All of one adapter, by the model's layers."""

    name: str
    identity: Identity
    changes: dict[str, Change]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Adapters:
    """Those of one job with their scales; equal for jobs that may share a step: the same content, not only the name."""

    key: tuple[tuple[Identity, float], ...]
    parts: tuple[tuple[Adapter, float], ...] = field(compare=False)

    def changes(self, layer: str) -> Iterator[Change]:
        """What all of them do to a layer, each with its scale in the factor."""
        for adapter, scale in self.parts:
            if (change := adapter.changes.get(layer)) is not None:
                yield change._replace(factor=change.factor * scale)


class AdapterCache:
    """Adapters by the content of their files; beyond ``limit_bytes`` the least lately used ones are forgotten.

    May be used from several threads: one reads files while the GPU thread takes what is there.
    """

    def __init__(self, directories: AdapterDirectories, layers: Layers, limit_bytes: int) -> None:
        self._directories = directories
        self._layers = layers
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[Identity, Adapter] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Of all that are kept."""
        return sum(adapter.size_bytes for adapter in self._kept.values())

    def get(self, uses: Sequence[LoraUse]) -> Adapters | None:
        """``None`` for none. Raises ``LoraInvalid``, or ``InvalidValue`` for a name that is not there any more."""
        if not uses:
            return None
        with self._lock:
            parts = tuple((self._adapter(use.name), use.scale) for use in uses)
        return Adapters(tuple((adapter.identity, scale) for adapter, scale in parts), parts)

    def remarks(self, uses: Sequence[LoraUse]) -> list[str]:
        """What of them has no effect, as sentences for the user."""
        files = [self._directories.read(use.name) for use in uses]
        return [
            f"the LoRA adapter {file.name!r} also changes {file.text_encoder_layers} layers of the text encoders, "
            "which has no effect here"
            for file in files
            if file.text_encoder_layers
        ]

    def _adapter(self, name: str) -> Adapter:
        file = self._directories.read(name)
        kept = self._kept.get(file.identity)
        if kept is None:
            kept = load_adapter(file, self._layers)
            log.info("read the LoRA adapter %r: %d layers, rank %d", name, len(kept.changes), file.rank)
            self._kept[file.identity] = kept
            while len(self._kept) > 1 and self.size_bytes > self._limit_bytes:
                self._kept.popitem(last=False)
        self._kept.move_to_end(file.identity)
        if self.size_bytes > self._limit_bytes:  # larger than all that may be kept
            self._kept.clear()
        return kept


def load_adapter(file: AdapterFile, layers: Layers) -> Adapter:
    """Reads the tensors of an adapter. Raises ``LoraInvalid``, also for values that no adapter has."""
    pieces = file.pieces(layers)
    try:
        with file.path.open("rb") as stream:
            values = {tensor: _read(file, stream, tensor) for tensor in _needed(pieces)}
        is_same = Identity.of(file.path.stat()) == file.identity
    except OSError as error:
        raise LoraInvalid(f"the LoRA adapter {file.name!r} cannot be read: {error.strerror}", param="loras") from None
    if not is_same:
        raise LoraInvalid(f"the LoRA adapter {file.name!r} was replaced while it was read: ask again", param="loras")
    changes = {piece.layer: _change(file, piece, values) for piece in pieces}
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in values.values())
    return Adapter(file.name, file.identity, changes, size_bytes)


def _needed(pieces: Sequence[Piece]) -> dict[str, None]:
    sources = [piece.source for piece in pieces]
    return dict.fromkeys(
        tensor for source in sources for tensor in (source.down, source.up, source.alpha) if tensor is not None
    )


def _read(file: AdapterFile, stream: BufferedReader, tensor: str) -> torch.Tensor:
    """Read, not mapped: a file that is overwritten later must change nothing, and one that is cut off kill nobody."""
    entry = file.tensors[tensor]
    values = torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
    stream.seek(file.data_start + entry.data_offsets[0])
    if values.numel() and stream.readinto(values.view(-1).view(torch.uint8).numpy().data) < values.nbytes:
        raise LoraInvalid(f"the LoRA adapter {file.name!r} ends within {tensor}", param="loras")
    if not bool(torch.isfinite(values).all()):
        raise LoraInvalid(f"the LoRA adapter {file.name!r} has NaN or infinity in {tensor}", param="loras")
    return values


def _change(file: AdapterFile, piece: Piece, values: dict[str, torch.Tensor]) -> Change:
    source = piece.source
    up = values[source.up][piece.first_row : piece.first_row + piece.rows]
    if piece.is_swapped:
        up = torch.cat(up.chunk(2)[::-1])
    return Change(values[source.down], up, _factor(file, piece.layer, source, values))


def _factor(file: AdapterFile, layer: str, source: FileLayer, values: dict[str, torch.Tensor]) -> float:
    alpha = file.settings.alpha(layer, source.rank) if source.alpha is None else float(values[source.alpha])
    factor = file.settings.factor(alpha, source.rank)
    if not math.isfinite(factor) or abs(factor) > _MAX_FACTOR:
        raise LoraInvalid(
            f"the LoRA adapter {file.name!r} has the alpha {alpha:g} for rank {source.rank} in {source.name}: "
            "no trained adapter is that strong",
            param="loras",
        )
    return factor
