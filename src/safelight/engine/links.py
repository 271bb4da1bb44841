"""Ways from host memory to the tensors of a device, one for each kind of device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from safelight.engine.encodings import Encoding

if TYPE_CHECKING:
    import torch


class Mark(Protocol):
    """A point in the work of a link."""

    def synchronize(self) -> None:
        """Returns when all that was asked for before it is done."""


class Link(Protocol):
    """A way from host memory to tensors on a device; belongs to one thread."""

    def buffer(self, size_bytes: int) -> torch.Tensor:
        """Bytes of host memory from which the device copies fastest."""

    def copy(self, target: torch.Tensor, content: torch.Tensor, encoding: Encoding) -> None:
        """Decodes and converts if need be, and may return before it is done; ``content`` is part of a buffer."""

    def mark(self) -> Mark:
        """The end of all copies so far."""


class HostLink:
    """To tensors in this process's own memory."""

    def buffer(self, size_bytes: int) -> torch.Tensor:
        import torch

        return torch.empty(size_bytes, dtype=torch.uint8)

    def copy(self, target: torch.Tensor, content: torch.Tensor, encoding: Encoding) -> None:
        target.copy_(encoding.decode(content))

    def mark(self) -> Mark:
        return _Past()


class _Past:
    def synchronize(self) -> None:
        """Nothing to wait for."""


class CudaLink:
    """To a CUDA device, over a stream of its own; decodes and converts there, after the copy."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self._stream = torch.cuda.Stream(device)
        # A thread begins on the first device, and would pin its buffers for that.
        torch.cuda.set_device(self._stream.device)

    def buffer(self, size_bytes: int) -> torch.Tensor:
        import torch

        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)

    def copy(self, target: torch.Tensor, content: torch.Tensor, encoding: Encoding) -> None:
        import torch

        with torch.cuda.stream(self._stream):
            if encoding.dtype != target.dtype:
                content = content.to(target.device, non_blocking=True)
            target.copy_(encoding.decode(content), non_blocking=True)

    def mark(self) -> Mark:
        event: Mark = self._stream.record_event()
        return event
