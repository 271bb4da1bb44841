"""Where a FLUX model's weights lie while it works: on the device, or in the host's memory, from where they visit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from safelight.engine.flux.linears import Adaptable
from safelight.engine.memory_plan import MemoryMode
from safelight.engine.weight_stream import WeightStream, visiting


class Residency:
    """All weights stay where they were loaded: on the device."""

    is_streaming = False
    """Whether a forward waits for weights: then it cannot be recorded."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def bring(self, module: nn.Module, besides: Sequence[nn.Module] = ()) -> None:
        """The weights of ``module`` are needed all the time, but for those of the modules ``besides``."""

    def block(self, layers: Iterable[Adaptable]) -> None:
        """These layers, on the device, work together; blocks are told in the order in which they do."""

    def blocks_end(self) -> None:
        """All blocks have been told."""

    def once(self, modules: Sequence[nn.Module]) -> None:
        """These modules are called one after the other, and only when a picture begins."""

    def at_work(self, index: int) -> AbstractContextManager[None]:
        """While block ``index`` is launched."""
        return contextlib.nullcontext()


class HostResidency(Residency):
    """What was loaded into the host's memory comes to the device: for good if it is needed all the time, else to visit.

    With ``streams_blocks`` the blocks only visit too.
    """

    def __init__(self, device: torch.device, *, streams_blocks: bool) -> None:
        super().__init__(device)
        self.is_streaming = streams_blocks
        self._stream = WeightStream(device)
        self._blocks: list[list[Adaptable]] = []

    def bring(self, module: nn.Module, besides: Sequence[nn.Module] = ()) -> None:
        staying = {id(tensor) for part in besides for tensor in _tensors(part)}
        for tensor in _tensors(module):
            if id(tensor) not in staying:
                tensor.data = tensor.data.to(self.device)

    def block(self, layers: Iterable[Adaptable]) -> None:
        if not self.is_streaming:
            return
        block = list(layers)
        self._blocks.append(block)
        self._stream.add([layer.weight for layer in block])
        for layer in block:  # lets go of the device's memory before the next block comes
            layer.place(layer.weight.new_empty(0))

    def blocks_end(self) -> None:
        if self.is_streaming:
            for block, weights in zip(self._blocks, self._stream.open(), strict=True):
                for layer, weight in zip(block, weights, strict=True):
                    layer.place(weight)

    def once(self, modules: Sequence[nn.Module]) -> None:
        visiting(modules, self.device)

    def at_work(self, index: int) -> AbstractContextManager[None]:
        return self._visit(index) if self.is_streaming else contextlib.nullcontext()

    @contextlib.contextmanager
    def _visit(self, index: int) -> Iterator[None]:
        self._stream.enter(index)
        yield
        self._stream.leave(index)


def residency_for(device: str, mode: MemoryMode) -> Residency:
    """What a memory plan of this mode has in mind."""
    if mode is MemoryMode.FULL:
        return Residency(torch.device(device))
    return HostResidency(torch.device(device), streams_blocks=mode is MemoryMode.OFFLOAD)


def settle_text_encoder(t5: Any, residency: Residency) -> None:
    """T5 is the largest of what is used once a picture."""
    residency.bring(t5, besides=[t5.encoder.block])
    residency.once(list(t5.encoder.block))


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()
