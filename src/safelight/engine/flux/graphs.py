"""CUDA graphs of the transformer's forward, for the sizes at which launching kernels takes longer than running them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from safelight.engine.flux.operations import Rope
from safelight.engine.flux.shape import BatchShape

_MAX_GRAPHS = 16

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
