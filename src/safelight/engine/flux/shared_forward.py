"""The forward over a part of the tokens, the other parts being other processes': sequence parallelism.

Texts and pictures are cut alike, so each member has its part of both streams of a double block. Only attention looks
beyond its own token: each member's queries look at the keys and values of all (as in ring attention, arXiv 2310.01889,
but gathered at once). For two members that moves as many bytes as Ulysses (arXiv 2309.14509) in one exchange instead of
two, with heads of any number; in single blocks it goes on while the MLP is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from safelight.engine.flux.attention import attended
from safelight.engine.flux.operations import Pending, Rope
from safelight.engine.flux.transformer import LeanTransformer

if TYPE_CHECKING:
    from safelight.engine.team import Team


class SharedForward:
    """As ``transformer``, for the same arguments on all members of ``team`` at the same time; all get the whole."""

    def __init__(self, transformer: LeanTransformer, team: Team) -> None:
        self._transformer = transformer
        self._team = team

    def __call__(self, latents: torch.Tensor, text: torch.Tensor, modulation: torch.Tensor, rope: Rope) -> torch.Tensor:
        rank, begin = self._team.rank, text.shape[1]
        texts, pictures = parts(begin, self._team.size), parts(latents.shape[1], self._team.size)
        counts = [_count(of_text) + _count(of_picture) for of_text, of_picture in zip(texts, pictures, strict=True)]
        own_text, own_picture = texts[rank], pictures[rank]
        cosines, sines = (torch.cat([table[:begin][own_text], table[begin:][own_picture]]) for table in rope)
        attention = functools.partial(self._attend, counts)
        velocity = self._transformer(
            latents[:, own_picture], text[:, own_text], modulation, (cosines, sines), attention
        )
        return self._gather(velocity, [_count(part) for part in pictures])()

    def _attend(self, counts: Sequence[int], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Pending:
        """``counts`` are the tokens of each member."""
        rows, heads, tokens, size = key.shape
        # Side by side for each token, so that the parts of all members are one tensor without a copy.
        both = key.new_empty(rows, max(counts), 2, heads, size)
        for place, part in enumerate((key, value)):
            _words(both[:, :tokens, place]).copy_(_words(part.transpose(1, 2)))
        gathered = self._gather(both, counts)

        def attend() -> torch.Tensor:
            keys, values = gathered().transpose(1, 3).unbind(2)
            return attended(query, keys, values)

        return attend

    def _gather(self, own: torch.Tensor, counts: Sequence[int]) -> Pending:
        """(rows, tokens of all, ...) from the (rows, tokens, ...) of each member, of which ``counts`` are theirs.

        Exchanges are of one size: those that have fewer tokens send something more, which is cut off.
        """
        rows, most = len(own), max(counts)
        if own.shape[1] < most:
            own = torch.cat([own, own.new_zeros(rows, most - own.shape[1], *own.shape[2:])], dim=1)
        gathered = self._team.gather(own)

        def whole() -> torch.Tensor:
            found = gathered()
            if rows == 1 and all(count == most for count in counts[:-1]):
                return found.flatten(0, 2)[None, : sum(counts)]
            return torch.cat([part[:, :count] for part, count in zip(found, counts, strict=True)], dim=1)

        return whole


def _words(numbers: torch.Tensor) -> torch.Tensor:
    """The same memory in words of eight bytes: a copy between layouts goes element by element."""
    return numbers.view(torch.int64)


def parts(total: int, size: int) -> list[slice]:
    """``total`` tokens for ``size`` members, the first ones having one more where it does not come out even."""
    least, more = divmod(total, size)
    ends = [least * (rank + 1) + min(rank + 1, more) for rank in range(size)]
    return [slice(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def _count(part: slice) -> int:
    return int(part.stop - part.start)
