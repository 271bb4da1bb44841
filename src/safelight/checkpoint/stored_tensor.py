"""Where the bytes of a tensor lie in its file."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from safelight.tensor_header import BLOCKS, TensorEntry


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """``name`` is the file's own for it. Its bytes lie in equal pieces that begin at ``offsets``, in most cases in one.

    ``scale_offset``: where a float32 lies by which all of its values are to be multiplied.
    """

    path: Path
    name: str
    offsets: tuple[int, ...]
    dtype: str
    shape: tuple[int, ...]
    scale_offset: int | None = None

    @classmethod
    def of(cls, path: Path, name: str, entry: TensorEntry, data_start: int) -> StoredTensor | None:
        """``None`` if what the header says of it does not fit together."""
        begin, end = entry.data_offsets
        block = BLOCKS.get(entry.dtype)
        if block is None or math.prod(entry.shape) * block.size_bytes != (end - begin) * block.values:
            return None
        return cls(path, name, (data_start + begin,), entry.dtype, entry.shape)

    @property
    def count(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.count // BLOCKS[self.dtype].values * BLOCKS[self.dtype].size_bytes

    def rows(self, first: int, count: int) -> StoredTensor:
        """So many of its rows, as a tensor of its own."""
        offset = self.offsets[0] + self.size_bytes // self.shape[0] * first
        return replace(self, offsets=(offset,), shape=(count, *self.shape[1:]))

    def halves_swapped(self) -> StoredTensor:
        """The same with its second half first."""
        return replace(self, offsets=(self.offsets[0] + self.size_bytes // 2, self.offsets[0]))
