"""How the tokens of a batch lie in memory, and where in the modulation vector a block finds its numbers."""

from __future__ import annotations

from typing import NamedTuple


class BatchShape(NamedTuple):
    """``rows`` samples of ``text`` + ``image`` tokens each.

    Tokens lie as one matrix: those of all samples' texts first, then those of all pictures, so that each of the two
    streams of a double block is one contiguous matrix product. ``joint`` is the other order, sample after sample.
    """

    rows: int
    text: int
    image: int

    @property
    def tokens(self) -> int:
        """Of one sample."""
        return self.text + self.image

    @property
    def text_tokens(self) -> int:
        """Of all samples: where the pictures' tokens begin."""
        return self.rows * self.text

    @property
    def all_tokens(self) -> int:
        return self.rows * self.tokens

    @property
    def joint(self) -> BatchShape:
        """The same tokens as one stream, sample after sample; for one sample that is the same order."""
        return BatchShape(self.rows, 0, self.tokens)


class At(NamedTuple):
    """Where a shift, scale or gate begins in the modulation vector, for tokens of the text and of the picture."""

    text: int
    image: int


class Norm(NamedTuple):
    """A modulated LayerNorm by its places. What a block reads is ``is_inner``; the last one of the model is not."""

    shift: At
    scale: At
    is_inner: bool = True
