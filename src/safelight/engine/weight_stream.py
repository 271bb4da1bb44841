"""Weights that lie in the host's memory and visit the device while they are used.

A 24 GB card cannot hold FLUX.1 as it is, but it need not: a third of its weights (T5, the modulations) is used once a
picture, and blocks are used one after the other, so the next can be fetched while one is at work.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from safelight.errors import NotEnoughMemory

_ALIGNMENT_BYTES = 256
"""As the device's own allocator aligns; matrix products want it."""

_SLOTS = 2


@dataclass(slots=True)
class _Group:
    """Tensors that are used together: where each lies in ``home``, the bytes of all of them in host memory."""

    home: torch.Tensor
    places: list[tuple[int, torch.Tensor]]


@dataclass(slots=True)
class _Slot:
    """Device memory for one group. ``arrived`` and ``left`` are events of the copying and of the using stream."""

    content: torch.Tensor
    group: int = -1
    arrived: Any = None
    left: Any = None


@dataclass(slots=True)
class WeightStream:
    """Groups of tensors that are used in a fixed order, over and over: first ``add`` all, then ``open``.

    What ``open`` gives are fixed views of device memory. They hold the weights of their group from ``enter`` to
    ``leave`` of it, which the caller calls on the thread and stream that use them.
    """

    device: torch.device
    _groups: list[_Group] = field(default_factory=list)
    _slots: list[_Slot] = field(default_factory=list)
    _copies: Any = None

    def add(self, tensors: Sequence[torch.Tensor]) -> None:
        """Copies one group to the host; the caller may let go of its tensors, wherever they are."""
        ends_bytes = itertools.accumulate(map(_aligned_bytes, tensors), initial=0)
        *begins_bytes, size_bytes = ends_bytes
        home = _host_memory(size_bytes, is_pinned=self.device.type == "cuda")
        places = []
        for begin_bytes, tensor in zip(begins_bytes, tensors, strict=True):
            _view(home, begin_bytes, tensor).copy_(tensor)
            places.append((begin_bytes, torch.empty_like(tensor, device="meta")))
        self._groups.append(_Group(home, places))

    def open(self) -> list[list[torch.Tensor]]:
        """Takes memory of the device for the two largest groups; the tensors of each group as they will be there."""
        size_bytes = max((group.home.numel() for group in self._groups), default=0)
        for _ in range(min(_SLOTS, len(self._groups))):
            self._slots.append(_Slot(torch.empty(size_bytes, dtype=torch.uint8, device=self.device)))
        if self.device.type == "cuda":
            self._copies = torch.cuda.Stream(self.device)
        return [
            [_view(self._slot(index).content, begin_bytes, tensor) for begin_bytes, tensor in group.places]
            for index, group in enumerate(self._groups)
        ]

    def enter(self, index: int) -> None:
        """Group ``index`` is there for what is launched from now on; the next one is fetched meanwhile."""
        slot = self._slot(index)
        if slot.group != index:
            self._fetch(index)
        if self._copies is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.arrived)
        following = self._after(index)
        if self._slot(following) is not slot:
            self._fetch(following)

    def leave(self, index: int) -> None:
        """Nothing that is launched from now on uses group ``index``."""
        slot = self._slot(index)
        if self._copies is not None:
            slot.left = torch.cuda.current_stream(self.device).record_event()
        following = self._after(index)
        if self._slot(following) is slot and following != index:
            self._fetch(following)

    def _after(self, index: int) -> int:
        return (index + 1) % len(self._groups)

    def _slot(self, index: int) -> _Slot:
        return self._slots[index % _SLOTS]

    def _fetch(self, index: int) -> None:
        slot, home = self._slot(index), self._groups[index].home
        if slot.group == index:
            return
        slot.group = index
        target = slot.content[: home.numel()]
        if self._copies is None:
            target.copy_(home)
            return
        with torch.cuda.stream(self._copies):
            if slot.left is not None:
                self._copies.wait_event(slot.left)
            target.copy_(home, non_blocking=True)
            slot.arrived = self._copies.record_event()


def visiting(modules: Sequence[nn.Module], device: torch.device) -> None:
    """Has the parameters of ``modules``, which are called one after the other, visit ``device`` while they are called.

    They may lie anywhere before; other code that reads the parameters sees whatever lies in their place.
    """
    stream = WeightStream(device)
    for module in modules:
        stream.add([parameter.data for parameter in module.parameters()])
        for parameter in module.parameters():
            parameter.data = parameter.data.new_empty(0)
    for index, (module, views) in enumerate(zip(modules, stream.open(), strict=True)):
        for parameter, view in zip(module.parameters(), views, strict=True):
            parameter.data = view
        module.register_forward_pre_hook(lambda *_, index=index: stream.enter(index))
        module.register_forward_hook(lambda *_, index=index: stream.leave(index))


def _view(memory: torch.Tensor, begin_bytes: int, tensor: torch.Tensor) -> torch.Tensor:
    """The stretch of ``memory`` that holds a tensor of this shape and dtype."""
    stretch = memory[begin_bytes : begin_bytes + tensor.numel() * tensor.element_size()]
    return stretch.view(tensor.dtype).view(tensor.shape)


def _aligned_bytes(tensor: torch.Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def _host_memory(size_bytes: int, *, is_pinned: bool) -> torch.Tensor:
    """Pinned by hand: PyTorch's allocator of pinned memory rounds up to a power of two, gigabytes for nothing."""
    memory = torch.empty(size_bytes, dtype=torch.uint8)
    if is_pinned and size_bytes:
        error = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), size_bytes, 0)
        if int(error) != 0:
            raise NotEnoughMemory(
                f"{size_bytes / 1e9:.1f} GB of the host's memory cannot be pinned (CUDA error {int(error)}): "
                "raise the limit of locked memory, or use --memory full"
            )
    return memory
