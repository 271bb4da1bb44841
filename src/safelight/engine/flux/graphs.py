"""CUDA graphs, for whatever launching takes longer than running: the transformer at small sizes, the text encoders."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from safelight.engine.flux.operations import Rope
from safelight.engine.flux.shape import BatchShape

log = logging.getLogger(__name__)

_MAX_GRAPHS = 16
_MAX_TEXT_GRAPHS = 4

Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Rope], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    rope: Rope
    velocity: torch.Tensor

    def replay(self, latents: torch.Tensor, text: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        for kept, given in zip(self.inputs, (latents, text, modulation), strict=True):
            kept.copy_(given)
        self.graph.replay()
        # All recordings share one memory pool: the next replay may overwrite this one's output.
        return self.velocity.clone()


class GraphedForward:
    """A forward that is recorded at the second call of a shape and replayed from then on.

    The first call of a shape runs as it is, so no request waits for more than one recording, which takes about as long
    as a step. Shapes of more than ``max_tokens`` are never recorded. The least used recording makes room for a new one.
    Pictures of as many tokens but another aspect, or with another reference, have other rotary tables: a recording is
    for one shape and one of those.
    """

    def __init__(self, forward: Forward, max_tokens: int) -> None:
        self._forward = forward
        self._max_tokens = max_tokens
        self._seen: set[BatchShape] = set()
        self._recordings: OrderedDict[tuple[BatchShape, int], _Recording] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, latents: torch.Tensor, text: torch.Tensor, modulation: torch.Tensor, rope: Rope) -> torch.Tensor:
        shape = BatchShape(len(latents), text.shape[1], latents.shape[1])
        if shape.all_tokens > self._max_tokens or shape not in self._seen:
            self._seen.add(shape)
            return self._forward(latents, text, modulation, rope)
        key = shape, id(rope)  # which the recording keeps alive
        if key not in self._recordings:
            if len(self._recordings) >= _MAX_GRAPHS:
                self._recordings.popitem(last=False)
            self._recordings[key] = self._record(latents, text, modulation, rope)
        self._recordings.move_to_end(key)
        return self._recordings[key].replay(latents, text, modulation)

    def _record(self, latents: torch.Tensor, text: torch.Tensor, modulation: torch.Tensor, rope: Rope) -> _Recording:
        inputs = latents.clone(), text.clone(), modulation.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            velocity = self._forward(*inputs, rope)
        return _Recording(graph, inputs, rope, velocity)


class GraphedEncoder:
    """Stands for the ``forward`` of a text encoder: Python launches T5's 24 layers more slowly than the GPU runs them.

    The first lengths of text that come are recorded after their first run, any others run as they are; so does an
    encoder that cannot be recorded.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self._recordings: dict[object, tuple[torch.cuda.CUDAGraph, torch.Tensor, Any]] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._can_record = True

    def __call__(self, input_ids: torch.Tensor, **options: Any) -> Any:
        key = input_ids.shape, *sorted(options.items())
        if key not in self._recordings:
            found = self._forward(input_ids, **options)
            if self._can_record and len(self._recordings) < _MAX_TEXT_GRAPHS:
                self._record(key, input_ids, options)
            return found
        graph, kept, output = self._recordings[key]
        kept.copy_(input_ids)
        graph.replay()
        return type(output)(**{name: value.clone() for name, value in output.items()})

    def _record(self, key: object, input_ids: torch.Tensor, options: dict[str, Any]) -> None:
        kept, graph = input_ids.clone(), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                output = self._forward(kept, **options)
        except RuntimeError:
            log.warning("a text encoder cannot be recorded as a CUDA graph; it runs without", exc_info=True)
            self._can_record = False
        else:
            self._recordings[key] = graph, kept, output
