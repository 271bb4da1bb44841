"""How many tokens a job's picture and reference have, and the rotary tables that tell where each of them is."""

from __future__ import annotations

from collections import OrderedDict
from math import prod

from safelight.engine.flux.operations import Rope
from safelight.engine.flux.transformer import LeanTransformer
from safelight.params import GenerationParams

_KEPT_ROPES = 32

_Grid = tuple[int, int]


class Places:
    """Tables are kept for the shapes that come again. ``token_side`` is how many pixels a token is wide and high."""

    def __init__(self, transformer: LeanTransformer, token_side: int) -> None:
        self._transformer = transformer
        self._token_side = token_side
        self._ropes: OrderedDict[tuple[int, _Grid, _Grid | None], Rope] = OrderedDict()

    def tokens(self, params: GenerationParams) -> int:
        """Of one row of a transformer call."""
        reference = self._grid(params.reference_size)
        return self.drawn_tokens(params) + (prod(reference) if reference else 0) + params.max_sequence_length

    def drawn_tokens(self, params: GenerationParams) -> int:
        """Those of the picture that is drawn."""
        return prod(self._drawn(params))

    def rope(self, params: GenerationParams) -> Rope:
        """The same object for all jobs of one shape."""
        key = params.max_sequence_length, self._drawn(params), self._grid(params.reference_size)
        if key not in self._ropes:
            if len(self._ropes) >= _KEPT_ROPES:
                self._ropes.popitem(last=False)
            self._ropes[key] = self._transformer.rope(*key)
        self._ropes.move_to_end(key)
        return self._ropes[key]

    def _drawn(self, params: GenerationParams) -> _Grid:
        return params.height // self._token_side, params.width // self._token_side

    def _grid(self, size: tuple[int, int] | None) -> _Grid | None:
        """Rows and columns of tokens of a picture of (width, height) pixels."""
        return None if size is None else (size[1] // self._token_side, size[0] // self._token_side)
